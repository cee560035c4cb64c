#pragma once

#include <algorithm>
#include <cstdint>

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/convert.cuh"
#include "dflash/cuda/each.cuh"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/linear_few_rows.cuh"
#include "dflash/cuda/vector.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash {

namespace cuda::detail {

inline constexpr unsigned int8_threads = 256;
/// Rows of w and of x that one product takes: they bound the memory that widening takes.
inline constexpr index_t int8_outputs = 4096, int8_rows = 4096;

/// One block per row of w; its largest number becomes 127. The scale is 0 if all are.
///                                                         w, whole (., columns)  scale (.)
template <class T>
__global__ void __launch_bounds__(int8_threads)
    freeze_int8_kernel(const T* w, index_t columns, std::int8_t* whole, float* scale) {
  const index_t n = blockIdx.x;
  const T* const row = w + n * columns;
  float largest = 0;
  for (index_t i = threadIdx.x; i < columns; i += blockDim.x)
    largest = fmaxf(largest, fabsf(to_float(row[i])));
  const float by = block_max(largest, shared_memory<float>()) / 127;
  for (index_t i = threadIdx.x; i < columns; i += blockDim.x)
    whole[n * columns + i] = by > 0 ? std::int8_t(rintf(to_float(row[i]) / by)) : std::int8_t(0);
  if (threadIdx.x == 0) scale[n] = by;
}

struct Scale {
  __device__ void operator()(float x, float scale, float& y) const { y = x * scale; }
};

/// y = x w^T. Whole numbers of a byte are exact in bfloat16, so products have w's own in either
/// type, summed in float; the scales come last.
///                                                         x (N, I)  w (O, I)  y (N, O)
template <class T>
void linear_int8(CudaBackend<T>& backend, In<T, 2> x,
                 const typename CudaBackend<T>::FrozenMatrix& w, Out<T, 2> y) {
  if (has_few_rows<T>(x, w.whole.data()))
    return linear_few_rows<T, std::int8_t>(backend, x, w.whole.data(), w.scale.data(), y);
  const index_t outputs = std::min(w.rows, int8_outputs), rows = std::min(x.shape[0], int8_rows);
  auto wide = backend.template allocate<T>(outputs * w.columns);
  auto product = backend.template allocate<float>(rows * outputs);
  for (Range o{0, outputs}; o.begin < w.rows; o = {o.end, std::min(w.rows, o.end + outputs)}) {
    each(backend.stream(), o.size() * w.columns, Assign{},
         read(w.whole.data() + o.begin * w.columns), write(wide.data()));
    for (Range r{0, rows}; r.begin < x.shape[0]; r = {r.end, std::min(x.shape[0], r.end + rows)}) {
      backend.gemm().multiply({.rows = r.size(),
                               .columns = o.size(),
                               .depth = w.columns,
                               .a_transposed = false,
                               .b_transposed = true,
                               .add = false},
                              x.rows(r).data, wide.data(), product.data());
      each(backend.stream(), r.size() * o.size(), Scale{}, read(product.data()),
           SameRow<float>{w.scale.data() + o.begin, o.size()},
           Columns<Access::write, T>{y.rows(r).data, o.size(), o.begin, w.rows});
    }
  }
}

}  // namespace cuda::detail

/// w in whole numbers up to 127 and a scale for each row: half the memory of bfloat16. Products
/// widen some rows at a time. A copy: w may go.                                      w (O, I)
template <class T>
typename CudaBackend<T>::FrozenMatrix freeze_int8(CudaBackend<T>& backend, In<T, 2> w) {
  typename CudaBackend<T>::FrozenMatrix frozen{{}, w.shape[0], w.shape[1], {}, {}};
  frozen.whole = backend.template allocate<std::int8_t>(w.size());
  frozen.scale = backend.template allocate<float>(w.shape[0]);
  cuda::launch(backend.stream(), cuda::detail::freeze_int8_kernel<T>, unsigned(w.shape[0]),
               cuda::detail::int8_threads, 32 * sizeof(float), w.data, w.shape[1],
               frozen.whole.data(), frozen.scale.data());
  return frozen;
}

}  // namespace dflash
