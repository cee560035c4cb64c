#pragma once

#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/convert.cuh"
#include "dflash/cuda/each.cuh"
#include "dflash/cuda/elementwise.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash {

/// y(n, c) = x(n, first + c): some columns of every row, such as a range of heads.
template <class T, class X, class U>
requires(std::is_same_v<std::remove_const_t<X>, U>) void copy_columns(CudaBackend<T>& backend,
                                                                      View<X, 2> x, index_t first,
                                                                      View<U, 2> y) {
  expects(first >= 0 && first + y.shape[1] <= x.shape[1] && y.shape[0] == x.shape[0],
          "copy_columns: the columns lie outside");
  cuda::each(backend.stream(), y.size(), cuda::detail::Assign{},
             cuda::Columns<cuda::Access::read, const U>{x.data, y.shape[1], first, x.shape[1]},
             cuda::write(y.data));
}

/// y(n, first + c) += x(n, c): the adjoint of copy_columns.
template <class T>
void add_columns(CudaBackend<T>& backend, In<T, 2> x, index_t first, Out<T, 2> y) {
  expects(first >= 0 && first + x.shape[1] <= y.shape[1] && y.shape[0] == x.shape[0],
          "add_columns: the columns lie outside");
  cuda::each(backend.stream(), x.size(), cuda::detail::Add{}, cuda::read(x.data),
             cuda::Columns<cuda::Access::update, T>{y.data, x.shape[1], first, y.shape[1]});
}

namespace cuda::detail {

/// One warp per row of a head.
template <class T>
__global__ void __launch_bounds__(128)
    merge_attention_kernel(const T* part, const float* part_lse, index_t part_heads, index_t rows,
                           index_t heads, index_t first, index_t dim, T* y, float* lse) {
  const index_t row = index_t(blockIdx.x) * (blockDim.x / warp_size) + threadIdx.x / warp_size;
  if (row >= rows) return;
  const Cell c = cell(row, part_heads);
  const index_t at = c.row * heads + first + c.column;
  const float here = lse[at], there = part_lse[row];
  __syncwarp();  // all have read lse before one writes it
  if (there == -INFINITY) return;
  const float top = fmaxf(here, there), sum = top + logf(expf(here - top) + expf(there - top)),
              old_share = expf(here - sum), new_share = expf(there - sum);
  for (index_t d = threadIdx.x % warp_size; d < dim; d += warp_size) {
    T* const to = y + at * dim + d;
    store(old_share * to_float(*to) + new_share * to_float(part[row * dim + d]), to);
  }
  if (threadIdx.x % warp_size == 0) lse[at] = sum;
}

}  // namespace cuda::detail

/// Merges attention over one part of the keys into what there is of the others: heads
/// [first, first + part heads) of y and lse. Before the first part y is 0 and lse -infinity.
///                         part (N, part heads, D)  part_lse (N, part heads)  y (N, heads, D)
template <class T>
void merge_attention(CudaBackend<T>& backend, In<T, 3> part, In<float, 2> part_lse, index_t first,
                     Out<T, 3> y, Out<float, 2> lse) {
  const index_t rows = part.shape[0] * part.shape[1];
  expects(first >= 0 && first + part.shape[1] <= y.shape[1] && part.shape[2] == y.shape[2] &&
              part.shape[0] == y.shape[0] && part_lse.size() == rows,
          "merge_attention: shapes differ");
  cuda::launch(backend.stream(), cuda::detail::merge_attention_kernel<T>, cuda::blocks_for(rows, 4),
               128u, 0, part.data, part_lse.data, part.shape[1], rows, y.shape[1], first,
               y.shape[2], y.data, lse.data);
}

}  // namespace dflash
