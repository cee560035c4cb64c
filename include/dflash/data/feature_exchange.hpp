#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "dflash/comm/sequence_parallel_group.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/data/batch.hpp"

namespace dflash {

/// Who captures the samples of a micro-step and who needs which of their rows, while the target
/// runs in the job. Samples are numbered replica after replica; target groups capture nearly equal,
/// contiguous shares of them. Of a group's ranks each serves every t-th rank of the world.
class FeatureDeal {
 public:
  struct Part {
    index_t sample;
    Range rows;  // of the sample
  };

  /// `kept` are those rows of each replica's samples that somebody sees.
  FeatureDeal(SequenceLayout layout, index_t tensor_parallel,
              std::vector<std::vector<index_t>> kept)
      : layout_(layout), tensor_parallel_(tensor_parallel), kept_(std::move(kept)) {
    first_.push_back(0);
    for (const auto& samples : kept_) first_.push_back(first_.back() + index_t(samples.size()));
  }

  index_t ranks() const { return index_t(kept_.size()) * layout_.ranks(); }
  index_t samples() const { return first_.back(); }
  Range of_replica(index_t replica) const {
    return {first_[std::size_t(replica)], first_[std::size_t(replica) + 1]};
  }
  /// Context rows of a sample that somebody sees.
  index_t kept(index_t sample) const {
    const auto replica =
        std::upper_bound(first_.begin(), first_.end(), sample) - first_.begin() - 1;
    return kept_[std::size_t(replica)][std::size_t(sample - first_[std::size_t(replica)])];
  }
  Range captured_by(index_t target_group) const {
    return even_cut(samples(), ranks() / tensor_parallel_, target_group);
  }

  /// What one rank sends to another, in the order of the samples.
  std::vector<Part> parts(index_t from, index_t to) const {
    std::vector<Part> found;
    if (from % tensor_parallel_ != to % tensor_parallel_) return found;
    const index_t replica = to / layout_.ranks();
    const auto& kept = kept_[std::size_t(replica)];
    const Range own = of_replica(replica), here = captured_by(from / tensor_parallel_);
    index_t total = 0, begin = 0;
    for (const index_t rows : kept) total += rows;
    const auto wanted = layout_.context_ranges(to % layout_.ranks(), total);
    for (index_t sample = own.begin; sample < own.end; ++sample) {
      const index_t rows = kept[std::size_t(sample - own.begin)];
      if (sample >= here.begin && sample < here.end)
        detail::for_each_overlap(wanted, begin, rows, [&](Range part) {
          found.push_back({sample, part});
        });
      begin += rows;
    }
    return found;
  }
  /// Rows of those.
  index_t rows(index_t from, index_t to) const {
    index_t sum = 0;
    for (const Part& part : parts(from, to)) sum += part.rows.size();
    return sum;
  }

 private:
  SequenceLayout layout_;
  index_t tensor_parallel_;
  std::vector<std::vector<index_t>> kept_;
  std::vector<index_t> first_;  // sample of each replica, and the end
};

/// Sends the features that this rank's target group has captured to the ranks that hold the rows,
/// in one exchange of the world. All ranks call it. Returns the context rows of this rank's batch.
///                    features (kept rows of the captured samples, C * H)  result (S, C * H)
template <Backend B, Communicator C>
Tensor<B, typename B::value_type, 2> exchange_features(
    B& backend, SequenceParallelGroup<C>& group, index_t target_group, const FeatureDeal& deal,
    Tensor<B, typename B::value_type, 2> features, index_t width) {
  using T = typename B::value_type;
  C& world = group.world();
  const Range captured = deal.captured_by(target_group);
  std::vector<index_t> offsets{0}, sent, received;
  for (index_t sample = captured.begin; sample < captured.end; ++sample)
    offsets.push_back(offsets.back() + deal.kept(sample));
  expects(features.view().shape[0] == offsets.back(), "exchange_features: rows differ");
  index_t send_rows = 0, receive_rows = 0;
  for (index_t rank = 0; rank < world.size(); ++rank) {
    const index_t there = deal.rows(world.rank(), rank), here = deal.rows(rank, world.rank());
    sent.push_back(there * width), received.push_back(here * width);
    send_rows += there, receive_rows += here;
  }
  Tensor<B, T, 2> out(backend, {send_rows, width});
  index_t at = 0;
  for (index_t rank = 0; rank < world.size(); ++rank)
    for (const auto& [sample, rows] : deal.parts(world.rank(), rank)) {
      const index_t begin = offsets[std::size_t(sample - captured.begin)] + rows.begin;
      backend.copy(features.view().rows({begin, begin + rows.size()}).data,
                   out.view().rows({at, at + rows.size()}).data, rows.size() * width);
      at += rows.size();
    }
  features = {};
  // Senders come in the order of the samples that they captured: that of a batch's rows.
  Tensor<B, T, 2> in(backend, {receive_rows, width});
  world.all_to_all(backend, In<T, 1>(reshape<1>(out.view(), {out.size()})), sent,
                   reshape<1>(in.view(), {in.size()}), received);
  return in;
}

}  // namespace dflash
