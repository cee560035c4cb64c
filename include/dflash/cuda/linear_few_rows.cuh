#pragma once

#include <cstdint>
#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/vector.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash::cuda {

/// A product with at most so many rows waits for the weights: each is read once, for all rows.
inline constexpr index_t few_rows = 4;

namespace detail {

inline constexpr unsigned few_rows_threads = 256;

/// One warp per row of w, which sums in the same order however many rows x has. A null scale is 1.
///                                         x (N, depth)  w (outputs, depth)  scale (outputs)
template <int N, class T, class W>
__global__ void __launch_bounds__(few_rows_threads)
    few_rows_kernel(const T* x, const W* w, const float* scale, index_t outputs, index_t depth,
                    T* y) {
  const index_t output = index_t(blockIdx.x) * (blockDim.x / warp_size) + threadIdx.x / warp_size;
  if (output >= outputs) return;
  const int lane = int(threadIdx.x) % warp_size;
  const W* const row = w + output * depth;
  float sum[N] = {};
#pragma unroll 4  // loads of the next steps are on their way
  for (index_t k = lane * wide; k < depth; k += warp_size * wide) {
    float weight[wide];
    load<wide>(row + k, weight);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float value[wide];
      load<wide>(x + n * depth + k, value);
#pragma unroll
      for (int i = 0; i < wide; ++i) sum[n] += value[i] * weight[i];
    }
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const float all = warp_sum(sum[n]);
    if (lane == 0) store(scale == nullptr ? all : all * scale[output], y + n * outputs + output);
  }
}

}  // namespace detail

/// Whether linear_few_rows can do the product: few rows that start where vectors may be read.
template <class T, class W>
bool has_few_rows(In<T, 2> x, const W* w) {
  return x.shape[0] > 0 && x.shape[0] <= few_rows && x.shape[1] % wide == 0 &&
         is_aligned(x.data, wide) && is_aligned(w, wide);
}

/// y = x w^T, times a scale for each output if there is one.
///                             x (N, I)  w (O, I)  scale (O)  y (N, O)
template <class T, class W>
void linear_few_rows(CudaBackend<T>& backend, In<T, 2> x, const W* w, const float* scale,
                     Out<T, 2> y) {
  const auto run = [&](auto rows) {
    constexpr index_t outputs_of_a_block = detail::few_rows_threads / warp_size;
    launch(backend.stream(), detail::few_rows_kernel<rows.value, T, W>,
           blocks_for(y.shape[1], outputs_of_a_block), detail::few_rows_threads, 0, x.data, w,
           scale, y.shape[1], x.shape[1], y.data);
  };
  switch (x.shape[0]) {
    case 1:
      return run(std::integral_constant<int, 1>{});
    case 2:
      return run(std::integral_constant<int, 2>{});
    case 3:
      return run(std::integral_constant<int, 3>{});
    default:
      return run(std::integral_constant<int, few_rows>{});
  }
}

}  // namespace dflash::cuda
