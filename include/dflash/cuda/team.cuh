#pragma once

#include "dflash/core/config.hpp"
#include "dflash/cuda/warp.cuh"

namespace dflash::cuda {

/// The threads that share a row: a warp, several to a block, for short rows; a whole block for long
/// ones.
template <int size>
struct Team {
  static constexpr int threads = size;  // 32, or the block's
  static constexpr int block = size == warp_size ? 128 : size;
  static constexpr int per_block = block / size;

  __device__ static int index() { return int(threadIdx.x) / size; }
  __device__ static int member() { return int(threadIdx.x) % size; }
  /// The same sum in every member. `scratch` is the block's, of 32 numbers.
  __device__ static float sum(float x, float* scratch) {
    if constexpr (size == warp_size)
      return warp_sum(x);
    else
      return block_sum(x, scratch);
  }
};

using WarpTeam = Team<warp_size>;
using BlockTeam = Team<256>;
inline constexpr index_t longest_row_of_a_warp = 1024;

}  // namespace dflash::cuda
