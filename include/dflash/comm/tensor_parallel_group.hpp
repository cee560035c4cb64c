#pragma once

#include <string>

#include "dflash/comm/communicator.hpp"
#include "dflash/comm/share.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// Consecutive ranks of the world that hold one model together: each a share of its heads, of its
/// intermediate rows and of its vocabulary.
template <Communicator C = SingleProcess>
class TensorParallelGroup {
 public:
  TensorParallelGroup() = default;
  /// Cuts the world into groups of `degree` ranks; every rank of the world calls it. Error unless
  /// the degree divides the world. The world stays the caller's, and may go.
  TensorParallelGroup(C& world, index_t degree) {
    if (degree < 1 || world.size() % degree != 0)
      throw Error("the world has " + std::to_string(world.size()) +
                  " ranks, which the tensor-parallel degree " + std::to_string(degree) +
                  " does not divide");
    index_ = world.rank() / degree;
    groups_ = world.size() / degree;
    ranks_ = world.split(int(index_));
  }
  TensorParallelGroup(C&& world, index_t degree) : TensorParallelGroup(world, degree) {}

  C& communicator() { return ranks_; }
  index_t rank() const { return ranks_.rank(); }  // inside the group
  index_t size() const { return ranks_.size(); }  // t
  index_t index() const { return index_; }        // which group this is,
  index_t groups() const { return groups_; }      // of how many
  Share share() const { return {size(), rank()}; }

 private:
  C ranks_{};
  index_t index_ = 0, groups_ = 1;
};

}  // namespace dflash
