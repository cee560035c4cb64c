#pragma once

#include <Eigen/Core>
#include <algorithm>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

namespace detail {

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class T>
auto eigen(View<T, 2> v) {
  return Eigen::Map<RowMajor<T>>(v.data, v.shape[0], v.shape[1]);
}
template <class T>
auto eigen(View<const T, 2> v) {
  return Eigen::Map<const RowMajor<T>>(v.data, v.shape[0], v.shape[1]);
}

}  // namespace detail

/// y = x w^T.                                              x (N, I)  w (O, I)  y (N, O)
template <class T>
void linear(CpuBackend<T>&, In<T, 2> x, In<T, 2> w, Out<T, 2> y) {
  expects(x.shape[1] == w.shape[1] && y.shape[0] == x.shape[0] && y.shape[1] == w.shape[0],
          "linear: shapes differ");
  detail::eigen(y).noalias() = detail::eigen(x) * detail::eigen(w).transpose();
}

/// dx += dy w.                                             dy (N, O)  w (O, I)  dx (N, I)
template <class T>
void linear_backward_input(CpuBackend<T>&, In<T, 2> dy, In<T, 2> w, Out<T, 2> dx) {
  expects(dy.shape[1] == w.shape[0] && dx.shape[0] == dy.shape[0] && dx.shape[1] == w.shape[1],
          "linear_backward_input: shapes differ");
  detail::eigen(dx).noalias() += detail::eigen(dy) * detail::eigen(w);
}

/// dw += dy^T x.                                           dy (N, O)  x (N, I)  dw (O, I)
template <class T>
void linear_backward_weight(CpuBackend<T>&, In<T, 2> dy, In<T, 2> x, Out<T, 2> dw) {
  expects(dy.shape[0] == x.shape[0] && dw.shape[0] == dy.shape[1] && dw.shape[1] == x.shape[1],
          "linear_backward_weight: shapes differ");
  detail::eigen(dw).noalias() += detail::eigen(dy).transpose() * detail::eigen(x);
}

/// w in the order in which products with it are fast. A copy: w may go.    w (O, I)
template <class T>
typename CpuBackend<T>::FrozenMatrix freeze(CpuBackend<T>& backend, In<T, 2> w) {
  typename CpuBackend<T>::FrozenMatrix f{backend.template allocate<T>(w.size()), w.shape[0],
                                         w.shape[1]};
  backend.copy(w.data, f.data.data(), w.size());
  return f;
}

/// y = x w^T with a frozen w: the same bits as with w itself.
template <class T>
void linear(CpuBackend<T>& backend, In<T, 2> x, const typename CpuBackend<T>::FrozenMatrix& w,
            Out<T, 2> y) {
  linear(backend, x, View<const T, 2>{w.data.data(), {w.rows, w.columns}}, y);
}

}  // namespace dflash
