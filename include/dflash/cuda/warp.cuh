#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "dflash/cuda/ptx.cuh"

namespace dflash::cuda {

inline constexpr int warp_size = 32;
inline constexpr unsigned whole_warp = 0xffffffffu;

/// The same sum in every lane of a whole warp; the order is fixed.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = warp_size / 2; step > 0; step /= 2) x += __shfl_xor_sync(whole_warp, x, step);
  return x;
}

/// The largest of a whole warp's, in every lane.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = warp_size / 2; step > 0; step /= 2)
    x = fmaxf(x, __shfl_xor_sync(whole_warp, x, step));
  return x;
}

/// The smallest and the largest of a whole warp's, in every lane.
__device__ __forceinline__ int warp_min(int x) { return __reduce_min_sync(whole_warp, x); }
__device__ __forceinline__ int warp_max(int x) { return __reduce_max_sync(whole_warp, x); }

/// The same largest number in every thread of a block of whole warps, all of which call it; NaN is
/// passed over. `scratch` as for block_sum.
__device__ __forceinline__ float block_max(float x, float* scratch) {
  x = warp_max(x);
  if (threadIdx.x % warp_size == 0) scratch[threadIdx.x / warp_size] = x;
  __syncthreads();
  x = scratch[0];
  for (unsigned w = 1; w < blockDim.x / warp_size; ++w) x = fmaxf(x, scratch[w]);
  __syncthreads();
  return x;
}

/// The same sum in every thread of a block of whole warps, all of which call it. `scratch` holds 32
/// numbers of shared memory that nobody writes between this call's barrier and the next barrier.
template <class T>
__device__ __forceinline__ T block_sum_once(T x, T* scratch) {
  x = warp_sum(x);
  const unsigned warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return warp_sum(lane < blockDim.x / warp_size ? scratch[lane] : T(0));
}

/// The same, with scratch that may be written again at once.
template <class T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {
  x = block_sum_once(x, scratch);
  __syncthreads();
  return x;
}

}  // namespace dflash::cuda
