#pragma once

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/team.cuh"
#include "dflash/cuda/vector.cuh"

namespace dflash {

namespace cuda::detail {

/// One warp per head of a row.
template <int width, class T>
__global__ void __launch_bounds__(WarpTeam::block)
    head_dots_kernel(const T* y, const T* dy, index_t rows, index_t dim, float* delta) {
  const index_t n = index_t(blockIdx.x) * WarpTeam::per_block + WarpTeam::index();
  if (n >= rows) return;
  float sum = 0;
  for (index_t d = WarpTeam::member() * width; d < dim; d += warp_size * width) {
    float a[width], b[width];
    load<width>(y + n * dim + d, a);
    load<width>(dy + n * dim + d, b);
#pragma unroll
    for (int j = 0; j < width; ++j) sum += a[j] * b[j];
  }
  sum = warp_sum(sum);
  if (WarpTeam::member() == 0) delta[n] = sum;
}

}  // namespace cuda::detail

/// delta(n, h) = <y(n, h), dy(n, h)>: what the softmax's backward needs of the output.
///                                                 y, dy (N, heads, D)  delta (N, heads)
template <class T>
void head_dots(CudaBackend<T>& backend, In<T, 3> y, In<T, 3> dy, Out<float, 2> delta) {
  const index_t rows = delta.size(), dim = y.shape[2];
  expects(y.size() == rows * dim && dy.size() == y.size(), "head_dots: shapes differ");
  const bool vectors = dim % cuda::wide == 0 && cuda::is_aligned(y.data, cuda::wide) &&
                       cuda::is_aligned(dy.data, cuda::wide);
  cuda::launch(backend.stream(),
               vectors ? cuda::detail::head_dots_kernel<cuda::wide, T>
                       : cuda::detail::head_dots_kernel<1, T>,
               cuda::blocks_for(rows, cuda::WarpTeam::per_block), unsigned(cuda::WarpTeam::block),
               0, y.data, dy.data, rows, dim, delta.data);
}

}  // namespace dflash
