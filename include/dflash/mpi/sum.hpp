#pragma once

#include <mpi.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "dflash/comm/communicator.hpp"
#include "dflash/mpi/exchange.hpp"

namespace dflash::detail {

/// A sum over ranks of this rank's part, on its way. In rounds, so that what is received at a time
/// is bounded; the messages of the first are posted at once.
template <class T, HostBackend B>
class MpiSum {
 public:
  /// out = sum over ranks of the part of `in` that `counts` make this rank's.
  MpiSum(B& backend, std::shared_ptr<MpiGroup> group, const char* collective, const T* in,
         std::span<const index_t> counts, T* out)
      : group_(std::move(group)),
        collective_(collective),
        in_(in),
        counts_(counts.begin(), counts.end()),
        out_(out),
        most_(*std::max_element(counts.begin(), counts.end())),
        segment_(std::max<index_t>(
            1, group_->limits.scratch_bytes / index_t(sizeof(T)) / std::max(1, group_->size - 1))),
        room_(std::min(segment_, own())),
        scratch_(backend.template allocate<T>(room_ * (group_->size - 1))),
        sources_(std::size_t(group_->size), nullptr) {
    backend.synchronize();
    if (most_ > 0) post();
  }

  /// Waits for the messages of each round, adds them up and posts the next.
  void finish() {
    while (begin_ < most_) {
      exchange_->wait();
      sources_[std::size_t(group_->rank)] = block(group_->rank);
      if (now(own()) > 0) sum_in_order<T>(sources_, now(own()), out_ + begin_);
      begin_ += segment_;
      if (begin_ < most_) post();
    }
  }

 private:
  index_t own() const { return counts_[std::size_t(group_->rank)]; }
  /// Elements that this round takes of a part.
  index_t now(index_t count) const { return std::clamp<index_t>(count - begin_, 0, segment_); }
  /// Where this round's elements of a rank's part begin.
  const T* block(int rank) const { return in_ + offset_of(counts_, rank) + begin_; }
  static index_t bytes(index_t elements) { return elements * index_t(sizeof(T)); }

  void post() {
    exchange_.emplace(group_, collective_);
    for (int step = 1; step < group_->size; ++step) {
      const int from = (group_->rank - step + group_->size) % group_->size;
      T* const place = scratch_.data() + room_ * (step - 1);
      sources_[std::size_t(from)] = place;
      exchange_->receive(reinterpret_cast<std::byte*>(place), bytes(now(own())), from);
    }
    for (int step = 1; step < group_->size; ++step) {
      const int to = (group_->rank + step) % group_->size;
      exchange_->send(reinterpret_cast<const std::byte*>(block(to)),
                      bytes(now(counts_[std::size_t(to)])), to);
    }
  }

  std::shared_ptr<MpiGroup> group_;
  const char* collective_;
  const T* in_;
  std::vector<index_t> counts_;
  T* out_;
  index_t most_, segment_, room_, begin_ = 0;
  typename B::template Buffer<T> scratch_;
  std::vector<const T*> sources_;        // of this round, by rank
  std::optional<MpiExchange> exchange_;  // goes before what it receives into
};

}  // namespace dflash::detail
