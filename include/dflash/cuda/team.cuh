#pragma once

#include "dflash/core/config.hpp"
#include "dflash/cuda/warp.cuh"

namespace dflash::cuda {

/// The threads that share a row: `lanes` neighbours of a warp, several teams to a block.
template <int lanes>
struct LaneTeam {
  /// How many teams a block of so many threads has.
  DFLASH_HOST_DEVICE static constexpr int in_block(int threads) { return threads / lanes; }

  __device__ static int size() { return lanes; }
  __device__ static int index() { return int(threadIdx.x) / lanes; }
  __device__ static int member() { return int(threadIdx.x) % lanes; }
  /// The same sum in every member; called by all threads of the block.
  __device__ static float sum(float x, float*) {
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(whole_warp, x, step);
    return x;
  }
};

/// The whole block, for long rows.
struct BlockTeam {
  DFLASH_HOST_DEVICE static constexpr int in_block(int) { return 1; }

  __device__ static int size() { return int(blockDim.x); }
  __device__ static int index() { return 0; }
  __device__ static int member() { return int(threadIdx.x); }
  /// `scratch` as for block_sum_once.
  __device__ static float sum(float x, float* scratch) { return block_sum_once(x, scratch); }
};

}  // namespace dflash::cuda
