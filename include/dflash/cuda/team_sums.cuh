#pragma once

#include <algorithm>
#include <cstddef>

#include "dflash/core/config.hpp"
#include "dflash/cuda/ptx.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash::cuda {

/// Shared memory of a block that sums rows by column: two places for the sums of warps, in turn,
/// then what else it needs, in whose place the sums of each team come at last.
class TeamSums {
 public:
  static std::size_t bytes(int teams, index_t columns, std::size_t before) {
    return start + std::max(before, sizeof(float) * std::size_t(teams * columns));
  }
  __device__ static float* of_warps(index_t turn) {
    return shared_memory<float>() + turn % 2 * warp_size;
  }
  __device__ static unsigned char* before() { return shared_memory() + start; }
  __device__ static float* of_team(int team, index_t columns) {
    return reinterpret_cast<float*>(before()) + team * columns;
  }
  /// part(c) = the teams' sums, once all have written theirs.
  __device__ static void join(int teams, index_t columns, float* part) {
    __syncthreads();
    for (index_t c = threadIdx.x; c < columns; c += blockDim.x) {
      float sum = 0;
      for (int t = 0; t < teams; ++t) sum += of_team(t, columns)[c];
      part[c] = sum;
    }
  }

 private:
  static constexpr std::size_t start = 2 * warp_size * sizeof(float);
};

}  // namespace dflash::cuda
