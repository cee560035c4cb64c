#pragma once

#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/column_sums.cuh"
#include "dflash/cuda/each.cuh"

namespace dflash {

namespace cuda::detail {

struct Add {
  __device__ void operator()(float x, float& y) const { y += x; }
};
struct Multiply {
  __device__ void operator()(float x, float& y) const { y *= x; }
};

template <class U>
__global__ void __launch_bounds__(256) fill_kernel(U* y, index_t n, U value) {
  const index_t step = index_t(gridDim.x) * blockDim.x;
  for (index_t i = index_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) y[i] = value;
}

/// What sum_rows adds for a number of x.
template <class T>
struct Itself {
  const T* x;
  template <int width>
  __device__ __forceinline__ void add(index_t at, float (&sum)[width]) const {
    float v[width];
    load<width>(x + at, v);
#pragma unroll
    for (int j = 0; j < width; ++j) sum[j] += v[j];
  }
  bool allows(int width) const { return is_aligned(x, width); }
};

}  // namespace cuda::detail

/// y = value.
template <class T, class U, int Rank>
void fill(CudaBackend<T>& backend, View<U, Rank> y, std::type_identity_t<U> value) {
  constexpr index_t threads = 256, each = 4, most = 1 << 16;
  const index_t blocks = std::min((y.size() + threads * each - 1) / (threads * each), most);
  cuda::launch(backend.stream(), cuda::detail::fill_kernel<U>, unsigned(blocks), unsigned(threads),
               0, y.data, y.size(), value);
}

/// y += x.
template <class T, class X, int Rank>
requires(std::is_same_v<std::remove_const_t<X>, T>) void add(CudaBackend<T>& backend,
                                                             View<X, Rank> x, View<T, Rank> y) {
  expects(x.size() == y.size(), "add: shapes differ");
  cuda::each(backend.stream(), y.size(), cuda::detail::Add{}, cuda::read<T>(x.data),
             cuda::update(y.data));
}

/// y(n) += x.                                                              x (C)  y (N, C)
template <class T>
void add_rows(CudaBackend<T>& backend, In<T, 1> x, Out<T, 2> y) {
  expects(x.shape[0] == y.shape[1], "add_rows: x must be as wide as y");
  cuda::each(backend.stream(), y.size(), cuda::detail::Add{}, cuda::SameRow<T>{x.data, y.shape[1]},
             cuda::update(y.data));
}

/// y(n) *= x(n).                                                           x (N)  y (N, C)
template <class T>
void scale_rows(CudaBackend<T>& backend, In<float, 1> x, Out<T, 2> y) {
  expects(x.shape[0] == y.shape[0], "scale_rows: x must be as long as y");
  cuda::each(backend.stream(), y.size(), cuda::detail::Multiply{},
             cuda::PerRow<float>{x.data, y.shape[1]}, cuda::update(y.data));
}

/// y += sum over n of x(n).                                                x (N, C)  y (C)
template <class T>
void sum_rows(CudaBackend<T>& backend, In<T, 2> x, Out<float, 1> y) {
  expects(x.shape[1] == y.shape[0], "sum_rows: y must be as wide as x");
  cuda::add_column_sums(backend, x.shape[0], x.shape[1], cuda::detail::Itself<T>{x.data}, y.data);
}

}  // namespace dflash
