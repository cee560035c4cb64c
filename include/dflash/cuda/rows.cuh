#pragma once

#include <cstdint>

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/convert.cuh"
#include "dflash/cuda/each.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash {

/// y(n) = w(ids(n)). An id that is not a row of w gives zeros, and the next download or synchronize
/// throws.                                                 w (V, C)  ids (N)  y (N, C)
template <class T>
void gather_rows(CudaBackend<T>& backend, In<T, 2> w, View<const std::int32_t, 1> ids,
                 Out<T, 2> y) {
  expects(y.shape[0] == ids.shape[0] && y.shape[1] == w.shape[1], "gather_rows: shapes differ");
  cuda::each(backend.stream(), y.size(), cuda::detail::Assign{},
             cuda::RowOf<cuda::Access::read, const T>{w.data, ids.data, w.shape[1], w.shape[0],
                                                      backend.fault(), int(CudaFault::gather_id)},
             cuda::write(y.data));
}

/// y(ids(n)) = x(n), ids distinct. A row whose id is not a row of y goes nowhere, and the next
/// download or synchronize throws.                         x (N, C)  ids (N)  y (V, C)
template <class T>
void scatter_rows(CudaBackend<T>& backend, In<T, 2> x, View<const std::int32_t, 1> ids,
                  Out<T, 2> y) {
  expects(x.shape[0] == ids.shape[0] && x.shape[1] == y.shape[1], "scatter_rows: shapes differ");
  cuda::each(backend.stream(), x.size(), cuda::detail::Assign{}, cuda::read(x.data),
             cuda::RowOf<cuda::Access::write, T>{y.data, ids.data, y.shape[1], y.shape[0],
                                                 backend.fault(), int(CudaFault::scatter_id)});
}

namespace cuda::detail {

/// A logit and where it is: the larger, or of equals the first, wins; every number wins over NaN,
/// which wins over none.
struct Best {
  float value;
  std::int32_t index;  // -1: none yet
  __device__ __forceinline__ void take(float v, std::int32_t i) {
    if (i < 0 || (v != v && index >= 0)) return;
    if (index < 0 || value != value || v > value || (v == value && i < index)) value = v, index = i;
  }
};

__device__ __forceinline__ Best warp_best(Best b) {
#pragma unroll
  for (int step = warp_size / 2; step > 0; step /= 2) {
    const float v = __shfl_xor_sync(whole_warp, b.value, step);
    const std::int32_t i = __shfl_xor_sync(whole_warp, b.index, step);
    b.take(v, i);
  }
  return b;
}

/// The best of a block, in every thread. `scratch` holds 32 of them.
__device__ __forceinline__ Best block_best(Best b, Best* scratch) {
  b = warp_best(b);
  if (threadIdx.x % warp_size == 0) scratch[threadIdx.x / warp_size] = b;
  __syncthreads();
  b = scratch[0];
  for (unsigned w = 1; w < blockDim.x / warp_size; ++w) b.take(scratch[w].value, scratch[w].index);
  __syncthreads();
  return b;
}

/// One block per row.
template <class T>
__global__ void __launch_bounds__(256)
    argmax_rows_kernel(const T* x, index_t width, std::int32_t* best) {
  const T* const row = x + index_t(blockIdx.x) * width;
  Best b{0, -1};
  for (index_t i = threadIdx.x; i < width; i += blockDim.x)
    b.take(to_float(row[i]), std::int32_t(i));
  b = block_best(b, shared_memory<Best>());
  if (threadIdx.x == 0) best[blockIdx.x] = b.index;
}

}  // namespace cuda::detail

/// best(n) = index of the first largest element of x(n).                   x (N, C)  best (N)
template <class T>
void argmax_rows(CudaBackend<T>& backend, In<T, 2> x, View<std::int32_t, 1> best) {
  const index_t width = x.shape[1];
  expects(best.shape[0] == x.shape[0] && (width > 0 || x.shape[0] == 0),
          "argmax_rows: shapes differ, or rows are empty");
  cuda::launch(backend.stream(), cuda::detail::argmax_rows_kernel<T>, unsigned(x.shape[0]), 256u,
               32 * sizeof(cuda::detail::Best), x.data, width, best.data);
}

}  // namespace dflash
