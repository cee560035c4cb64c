#pragma once

#include <string>
#include <utility>

#include "dflash/comm/communicator.hpp"
#include "dflash/comm/sequence_layout.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// The world, cut into replicas of u * r consecutive ranks that share one batch. Replicas hold
/// different samples.
template <Communicator C = SingleProcess>
class SequenceParallelGroup {
 public:
  SequenceParallelGroup() = default;
  explicit SequenceParallelGroup(C world, SequenceLayout layout = {})
      : world_(std::move(world)), layout_(layout) {
    const index_t size = world_.size(), degree = layout.ranks();
    if (layout.ulysses < 1 || layout.ring < 1 || size % degree != 0)
      throw Error("the world has " + std::to_string(size) + " ranks, which the sequence group's " +
                  std::to_string(layout.ulysses) + " (ulysses) x " + std::to_string(layout.ring) +
                  " (ring) do not divide");
    sequence_ = world_.split(int(world_.rank() / degree));
  }

  C& world() { return world_; }
  C& sequence() { return sequence_; }
  const SequenceLayout& layout() const { return layout_; }
  index_t rank() const { return sequence_.rank(); }  // inside the sequence group
  index_t replica() const { return world_.rank() / layout_.ranks(); }
  index_t replicas() const { return world_.size() / layout_.ranks(); }

 private:
  C world_{}, sequence_{};
  SequenceLayout layout_;
};

}  // namespace dflash
