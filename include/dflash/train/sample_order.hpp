#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "dflash/comm/sequence_layout.hpp"
#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/random.hpp"

namespace dflash {

/// The order of `size` samples in an epoch: a permutation, a pure function of (seed, epoch).
inline std::vector<index_t> epoch_order(index_t size, std::uint64_t seed, index_t epoch) {
  constexpr std::uint64_t purpose =
      0x6f72646572;  // sets these numbers apart from others of the seed
  const Random random(seed ^ purpose, std::uint64_t(epoch));
  std::vector<index_t> order(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), index_t(0));
  for (index_t i = size - 1; i > 0; --i) {
    const auto j = random.integer(std::uint64_t(i)) % std::uint64_t(i + 1);
    std::swap(order[std::size_t(i)], order[j]);
  }
  return order;
}

/// Which sample comes when: positions count on across epochs and nothing is dropped, so that a run
/// resumes at a position and each epoch sees every sample once. One thread at a time.
class SampleOrder {
 public:
  SampleOrder(index_t size, std::uint64_t seed) : size_(size), seed_(seed) {
    expects(size > 0, "SampleOrder: there are no samples");
  }

  index_t size() const { return size_; }
  index_t epoch(index_t position) const { return position / size_; }

  /// The sample at a position of the whole run, counted from 0.
  index_t sample(index_t position) {
    expects(position >= 0, "SampleOrder: a negative position");
    if (epoch(position) != cached_) {
      order_ = epoch_order(size_, seed_, epoch(position));
      cached_ = epoch(position);
    }
    return order_[std::size_t(position % size_)];
  }

 private:
  index_t size_;
  std::uint64_t seed_;
  index_t cached_ = -1;
  std::vector<index_t> order_;
};

/// The positions that a replica trains on in micro-step `micro` of optimizer step `step`, when a
/// micro-step takes `batch` samples over all replicas and a step `accumulation` micro-steps.
inline Range replica_positions(index_t step, index_t micro, index_t batch, index_t accumulation,
                               index_t replicas, index_t replica) {
  const index_t begin = (step * accumulation + micro) * batch;
  const Range own = even_cut(batch, replicas, replica);
  return {begin + own.begin, begin + own.end};
}

}  // namespace dflash
