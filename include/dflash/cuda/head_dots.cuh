#pragma once

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/team.cuh"
#include "dflash/cuda/vector.cuh"

namespace dflash {

namespace cuda::detail {

inline constexpr int head_dots_threads = 256;

/// A team per head of a row: 16 lanes hold 128 numbers as vectors.
template <int width, class Team, class T>
__global__ void __launch_bounds__(head_dots_threads)
    head_dots_kernel(const T* y, const T* dy, index_t rows, index_t dim, float* delta) {
  const index_t n = index_t(blockIdx.x) * Team::in_block(head_dots_threads) + Team::index();
  float sum = 0;
  if (n < rows)
    for (index_t d = Team::member() * width; d < dim; d += Team::size() * width) {
      float a[width], b[width];
      load<width>(y + n * dim + d, a);
      load<width>(dy + n * dim + d, b);
#pragma unroll
      for (int j = 0; j < width; ++j) sum += a[j] * b[j];
    }
  sum = Team::sum(sum, nullptr);
  if (n < rows && Team::member() == 0) delta[n] = sum;
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
  using Team = cuda::LaneTeam<16>;
  constexpr int threads = cuda::detail::head_dots_threads;
  cuda::launch(backend.stream(),
               vectors ? cuda::detail::head_dots_kernel<cuda::wide, Team, T>
                       : cuda::detail::head_dots_kernel<1, Team, T>,
               cuda::blocks_for(rows, Team::in_block(threads)), unsigned(threads), 0, y.data,
               dy.data, rows, dim, delta.data);
}

}  // namespace dflash
