#pragma once

#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/column_sums.cuh"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/team.cuh"
#include "dflash/cuda/vector.cuh"

namespace dflash {

namespace cuda::detail {

template <int width, class Team, class T>
__global__ void __launch_bounds__(Team::block)
    rms_norm_kernel(const T* x, const T* scale, float eps, index_t rows, index_t columns, T* y,
                    float* rstd) {
  const index_t n = index_t(blockIdx.x) * Team::per_block + Team::index();
  if (n >= rows) return;  // a whole team
  constexpr index_t step = Team::threads * width;
  float sum = 0;
  for (index_t c = Team::member() * width; c < columns; c += step) {
    float v[width];
    load<width>(x + n * columns + c, v);
#pragma unroll
    for (int j = 0; j < width; ++j) sum += v[j] * v[j];
  }
  const float mean = Team::sum(sum, shared_memory<float>()) / float(columns);
  const float r = 1.0f / sqrtf(mean + eps);
  for (index_t c = Team::member() * width; c < columns; c += step) {
    float v[width], s[width];
    load<width>(x + n * columns + c, v);
    load<width>(scale + c, s);
#pragma unroll
    for (int j = 0; j < width; ++j) v[j] = v[j] * r * s[j];
    store<width>(v, y + n * columns + c);
  }
  if (Team::member() == 0) rstd[n] = r;
}

/// Each block a part of `each` rows; part(p, c) is what these add to dscale(c).
template <int width, class Team, class T>
__global__ void __launch_bounds__(Team::block)
    rms_norm_backward_kernel(const T* x, const T* scale, const float* rstd, const T* dy,
                             index_t rows, index_t each, index_t columns, T* dx, float* part) {
  constexpr index_t step = Team::threads * width;
  const index_t p = blockIdx.x, end = (p + 1) * each < rows ? (p + 1) * each : rows;
  float* const scratch = shared_memory<float>();
  float* const sums = scratch + warp_size;  // of each team, (teams, C)
  float* const own = sums + Team::index() * columns;
  for (index_t c = Team::member(); c < columns; c += Team::threads) own[c] = 0;
  __syncthreads();
  for (index_t n = p * each + Team::index(); n < end; n += Team::per_block) {
    const index_t at = n * columns;
    const float r = rstd[n];
    float dot = 0;
    for (index_t c = Team::member() * width; c < columns; c += step) {
      float in[width], out[width], s[width];
      load<width>(x + at + c, in);
      load<width>(dy + at + c, out);
      load<width>(scale + c, s);
#pragma unroll
      for (int j = 0; j < width; ++j) dot += in[j] * out[j] * s[j];
    }
    const float shrink = Team::sum(dot, scratch) / float(columns) * r * r * r;
    for (index_t c = Team::member() * width; c < columns; c += step) {
      float in[width], out[width], s[width], to[width], sum[width];
      load<width>(x + at + c, in);
      load<width>(dy + at + c, out);
      load<width>(scale + c, s);
      load<width>(dx + at + c, to);
      load<width>(own + c, sum);
#pragma unroll
      for (int j = 0; j < width; ++j) {
        to[j] += r * out[j] * s[j] - shrink * in[j];
        sum[j] += out[j] * in[j] * r;
      }
      store<width>(to, dx + at + c);
      store<width>(sum, own + c);
    }
  }
  __syncthreads();
  for (index_t c = threadIdx.x; c < columns; c += blockDim.x) {
    float sum = 0;
    for (int t = 0; t < Team::per_block; ++t) sum += sums[t * columns + c];
    part[p * columns + c] = sum;
  }
}

/// f(the width of a vector, the team) as constants, for rows of so many columns.
template <class F>
void for_row_shape(bool vectors, index_t columns, F f) {
  const auto with_width = [&](auto team) {
    if (vectors)
      f(std::integral_constant<int, wide>{}, team);
    else
      f(std::integral_constant<int, 1>{}, team);
  };
  if (columns <= longest_row_of_a_warp)
    with_width(WarpTeam{});
  else
    with_width(BlockTeam{});
}

}  // namespace cuda::detail

/// y = x rstd scale with rstd = 1 / sqrt(mean(x^2) + eps), row by row (arXiv:1910.07467). y may be
/// x.                                                      x, y (N, C)  scale (C)  rstd (N)
template <class T>
void rms_norm(CudaBackend<T>& backend, In<T, 2> x, In<T, 1> scale, float eps, Out<T, 2> y,
              Out<float, 1> rstd) {
  const index_t rows = x.shape[0], columns = x.shape[1];
  expects(y.shape[0] == rows && y.shape[1] == columns && scale.shape[0] == columns &&
              rstd.shape[0] == rows,
          "rms_norm: shapes differ");
  const bool vectors = columns % cuda::wide == 0 && cuda::is_aligned(x.data, cuda::wide) &&
                       cuda::is_aligned(scale.data, cuda::wide) &&
                       cuda::is_aligned(y.data, cuda::wide);
  cuda::detail::for_row_shape(
      vectors, columns, [&]<int width, class Team>(std::integral_constant<int, width>, Team) {
        cuda::launch(backend.stream(), cuda::detail::rms_norm_kernel<width, Team, T>,
                     cuda::blocks_for(rows, Team::per_block), unsigned(Team::block),
                     cuda::warp_size * sizeof(float), x.data, scale.data, eps, rows, columns,
                     y.data, rstd.data);
      });
}

/// Adds to dx and dscale.
template <class T>
void rms_norm_backward(CudaBackend<T>& backend, In<T, 2> x, In<T, 1> scale, In<float, 1> rstd,
                       In<T, 2> dy, Out<T, 2> dx, Out<float, 1> dscale) {
  const index_t rows = x.shape[0], columns = x.shape[1];
  expects(dy.shape[0] == rows && dy.shape[1] == columns && dx.shape[0] == rows &&
              dx.shape[1] == columns && scale.shape[0] == columns && dscale.shape[0] == columns &&
              rstd.shape[0] == rows,
          "rms_norm_backward: shapes differ");
  if (rows == 0 || columns == 0) return;
  const bool vectors = columns % cuda::wide == 0 && cuda::is_aligned(x.data, cuda::wide) &&
                       cuda::is_aligned(scale.data, cuda::wide) &&
                       cuda::is_aligned(dy.data, cuda::wide) &&
                       cuda::is_aligned(dx.data, cuda::wide);
  const cuda::RowParts parts(rows, 16, 256);
  auto part = backend.template allocate<float>(parts.count * columns);
  cuda::detail::for_row_shape(
      vectors, columns, [&]<int width, class Team>(std::integral_constant<int, width>, Team) {
        const std::size_t shared =
            sizeof(float) * std::size_t(cuda::warp_size + Team::per_block * columns);
        cuda::launch(backend.stream(), cuda::detail::rms_norm_backward_kernel<width, Team, T>,
                     unsigned(parts.count), unsigned(Team::block), shared, x.data, scale.data,
                     rstd.data, dy.data, rows, parts.each, columns, dx.data, part.data());
      });
  cuda::add_parts(backend, part.data(), parts.count, columns, dscale.data);
}

}  // namespace dflash
