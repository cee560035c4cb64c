#pragma once

#include "dflash/core/operations.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/frozen_int8.cuh"
#include "dflash/cuda/linear_few_rows.cuh"

namespace dflash {

/// y = x w^T.                                              x (N, I)  w (O, I)  y (N, O)
template <class T>
void linear(CudaBackend<T>& backend, In<T, 2> x, In<T, 2> w, Out<T, 2> y) {
  expects(x.shape[1] == w.shape[1] && y.shape[0] == x.shape[0] && y.shape[1] == w.shape[0],
          "linear: shapes differ");
  if (cuda::has_few_rows<T>(x, w.data))
    return cuda::linear_few_rows<T, T>(backend, x, w.data, nullptr, y);
  backend.gemm().multiply({.rows = y.shape[0],
                           .columns = y.shape[1],
                           .depth = x.shape[1],
                           .a_transposed = false,
                           .b_transposed = true,
                           .add = false},
                          x.data, w.data, y.data);
}

/// dx += dy w, or = it.                                           dy (N, O)  w (O, I)  dx (N, I)
template <class T>
void linear_backward_input(CudaBackend<T>& backend, In<T, 2> dy, In<T, 2> w, Out<T, 2> dx,
                           Result result = Result::added) {
  expects(dy.shape[1] == w.shape[0] && dx.shape[0] == dy.shape[0] && dx.shape[1] == w.shape[1],
          "linear_backward_input: shapes differ");
  backend.gemm().multiply({.rows = dx.shape[0],
                           .columns = dx.shape[1],
                           .depth = dy.shape[1],
                           .a_transposed = false,
                           .b_transposed = false,
                           .add = result == Result::added},
                          dy.data, w.data, dx.data);
}

/// dw += dy^T x, or = it, summed in float.                        dy (N, O)  x (N, I)  dw (O, I)
template <class T>
void linear_backward_weight(CudaBackend<T>& backend, In<T, 2> dy, In<T, 2> x, Out<float, 2> dw,
                            Result result = Result::added) {
  expects(dy.shape[0] == x.shape[0] && dw.shape[0] == dy.shape[1] && dw.shape[1] == x.shape[1],
          "linear_backward_weight: shapes differ");
  backend.gemm().multiply({.rows = dw.shape[0],
                           .columns = dw.shape[1],
                           .depth = x.shape[0],
                           .a_transposed = true,
                           .b_transposed = false,
                           .add = result == Result::added},
                          dy.data, x.data, dw.data);
}

/// w for products with it. A copy: w may go.               w (O, I)
template <class T>
typename CudaBackend<T>::FrozenMatrix freeze(CudaBackend<T>& backend, In<T, 2> w) {
  typename CudaBackend<T>::FrozenMatrix frozen{
      backend.template allocate<T>(w.size()), w.shape[0], w.shape[1], {}, {}};
  backend.copy(w.data, frozen.data.data(), w.size());
  return frozen;
}

/// y = x w^T with a frozen w: with freeze's the same bits as with w itself.
template <class T>
void linear(CudaBackend<T>& backend, In<T, 2> x, const typename CudaBackend<T>::FrozenMatrix& w,
            Out<T, 2> y) {
  expects(x.shape[1] == w.columns && y.shape[0] == x.shape[0] && y.shape[1] == w.rows,
          "linear: shapes differ");
  if (w.whole.size() > 0) return cuda::detail::linear_int8(backend, x, w, y);
  linear(backend, x, In<T, 2>{w.data.data(), {w.rows, w.columns}}, y);
}

}  // namespace dflash
