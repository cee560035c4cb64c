#pragma once

#include <algorithm>

#include "dflash/core/operations.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/each.cuh"

namespace dflash {

namespace cuda::detail {

template <class T>
__global__ void __launch_bounds__(256)
    rope_table_kernel(const index_t* position, const double* frequency, double factor, index_t size,
                      index_t half, T* cosines, T* sines) {
  const index_t i = index_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size) return;
  const Cell c = cell(i, half);
  const double angle = double(position[c.row]) * frequency[c.column];
  store(float(factor * cos(angle)), cosines + i);
  store(float(factor * sin(angle)), sines + i);
}

/// Each thread `width` pairs of a head. `pairs` is half / width for one head.
template <int width, class T>
__global__ void __launch_bounds__(256)
    rope_kernel(const T* cosines, const T* sines, float sign, index_t size, index_t heads,
                index_t half, index_t dim, T* x) {
  const index_t step = index_t(gridDim.x) * blockDim.x, pairs = half / width;
  for (index_t i = index_t(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
    const Cell of_head = cell(i, pairs);
    const index_t n = cell(of_head.row, heads).row, first = of_head.column * width;
    T* const lower = x + of_head.row * dim + first;
    float a[width], b[width], c[width], s[width];
    load<width>(cosines + n * half + first, c);
    load<width>(sines + n * half + first, s);
    load<width>(lower, a);
    load<width>(lower + half, b);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const float turn = sign * s[j], low = a[j], high = b[j];
      a[j] = low * c[j] - high * turn;
      b[j] = high * c[j] + low * turn;
    }
    store<width>(a, lower);
    store<width>(b, lower + half);
  }
}

}  // namespace cuda::detail

/// cos, sin = factor * cos, sin of position(n) * frequency(i), computed in double.
///                                             position (N)  frequency (D / 2)  cos, sin (N, D / 2)
template <class T>
void rope_table(CudaBackend<T>& backend, View<const index_t, 1> position,
                View<const double, 1> frequency, double factor, Out<T, 2> cos, Out<T, 2> sin) {
  const index_t rows = position.shape[0], half = frequency.shape[0];
  expects(
      cos.shape[0] == rows && cos.shape[1] == half && sin.shape[0] == rows && sin.shape[1] == half,
      "rope_table: shapes differ");
  cuda::launch(backend.stream(), cuda::detail::rope_table_kernel<T>,
               cuda::blocks_for(rows * half, 256), 256u, 0, position.data, frequency.data, factor,
               rows * half, half, cos.data, sin.data);
}

/// Turns the pairs (i, i + D / 2) of each head by its row's angles, in place; backward turns back
/// (arXiv:2104.09864). With tables narrower than D / 2 the rest of a head stays as it is.
///                                                     cos, sin (N, D / 2)  x (N, heads, D)
template <class T>
void rope(CudaBackend<T>& backend, In<T, 2> cos, In<T, 2> sin, Rotate rotate, Out<T, 3> x) {
  const index_t half = cos.shape[1], heads = x.shape[1], dim = x.shape[2];
  expects(cos.shape[0] == x.shape[0] && sin.shape[0] == x.shape[0] && sin.shape[1] == half &&
              2 * half <= dim,
          "rope: shapes differ");
  const bool vectors =
      half % cuda::wide == 0 && dim % cuda::wide == 0 && cuda::is_aligned(x.data, cuda::wide) &&
      cuda::is_aligned(cos.data, cuda::wide) && cuda::is_aligned(sin.data, cuda::wide);
  const index_t size = x.shape[0] * heads * half / (vectors ? cuda::wide : 1);
  cuda::launch(backend.stream(),
               vectors ? cuda::detail::rope_kernel<cuda::wide, T> : cuda::detail::rope_kernel<1, T>,
               std::min(cuda::blocks_for(size, 256), 1u << 16), 256u, 0, cos.data, sin.data,
               rotate == Rotate::forward ? 1.0f : -1.0f, size, heads, half, dim, x.data);
}

}  // namespace dflash
