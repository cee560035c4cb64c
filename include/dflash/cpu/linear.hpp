#pragma once

#include <algorithm>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/gemm.hpp"

namespace dflash {

/// y = x w^T.                                              x (N, I)  w (O, I)  y (N, O)
template <class T>
void linear(CpuBackend<T>& backend, In<T, 2> x, In<T, 2> w, Out<T, 2> y) {
  expects(x.shape[1] == w.shape[1] && y.shape[0] == x.shape[0] && y.shape[1] == w.shape[0],
          "linear: shapes differ");
  const index_t k = x.shape[1];
  detail::gemm<T>(backend, {x.data, k, 1}, {w.data, 1, k}, k, y, false);
}

/// dx += dy w.                                             dy (N, O)  w (O, I)  dx (N, I)
template <class T>
void linear_backward_input(CpuBackend<T>& backend, In<T, 2> dy, In<T, 2> w, Out<T, 2> dx) {
  expects(dy.shape[1] == w.shape[0] && dx.shape[0] == dy.shape[0] && dx.shape[1] == w.shape[1],
          "linear_backward_input: shapes differ");
  const index_t k = dy.shape[1];
  detail::gemm<T>(backend, {dy.data, k, 1}, {w.data, w.shape[1], 1}, k, dx, true);
}

/// dw += dy^T x.                                           dy (N, O)  x (N, I)  dw (O, I)
template <class T>
void linear_backward_weight(CpuBackend<T>& backend, In<T, 2> dy, In<T, 2> x, Out<T, 2> dw) {
  expects(dy.shape[0] == x.shape[0] && dw.shape[0] == dy.shape[1] && dw.shape[1] == x.shape[1],
          "linear_backward_weight: shapes differ");
  detail::gemm<T>(backend, {dy.data, 1, dy.shape[1]}, {x.data, x.shape[1], 1}, x.shape[0], dw,
                  true);
}

/// w in the order in which products with it are fast. A copy: w may go.    w (O, I)
template <class T>
typename CpuBackend<T>::FrozenMatrix freeze(CpuBackend<T>& backend, In<T, 2> w) {
  const detail::GemmKernel<T>& kernel = backend.gemm_kernel();
  const index_t columns = w.shape[0], k = w.shape[1];
  auto data = backend.template allocate<T>(kernel.padded(columns) * k);
  detail::pack_panels<T>(kernel, {w.data, 1, k}, k, {0, columns}, data.data());
  return {std::move(data), columns, k, backend.path()};
}

/// y = x w^T with a frozen w: the same bits as with w itself.
template <class T>
void linear(CpuBackend<T>& backend, In<T, 2> x, const typename CpuBackend<T>::FrozenMatrix& w,
            Out<T, 2> y) {
  expects(x.shape[1] == w.columns && y.shape[0] == x.shape[0] && y.shape[1] == w.rows,
          "linear: shapes differ");
  expects(w.path == backend.path(), "linear: w was frozen for another path");
  const index_t k = w.columns;
  Range ks{0, std::min(k, detail::gemm_slice)};
  do {
    detail::multiply_blocks<T>(backend, {x.data, k, 1}, {w.data.data(), k, w.rows}, ks, y,
                               y.shape[1], ks.begin > 0);
    ks = {ks.end, std::min(k, ks.end + detail::gemm_slice)};
  } while (ks.begin < k);
}

}  // namespace dflash
