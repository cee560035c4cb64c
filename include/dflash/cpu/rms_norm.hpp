#pragma once

#include <cmath>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// y = x rstd scale with rstd = 1 / sqrt(mean(x^2) + eps), row by row (arXiv:1910.07467). y may be
/// x.
///                                                         x, y (N, C)  scale (C)  rstd (N)
template <class T>
void rms_norm(CpuBackend<T>&, In<T, 2> x, In<T, 1> scale, std::type_identity_t<T> eps, Out<T, 2> y,
              Out<T, 1> rstd) {
  expects(y.shape[0] == x.shape[0] && y.shape[1] == x.shape[1] && scale.shape[0] == x.shape[1] &&
              rstd.shape[0] == x.shape[0],
          "rms_norm: shapes differ");
  const index_t rows = x.shape[0], columns = x.shape[1];
  for (index_t n = 0; n < rows; ++n) {
    double sum = 0;
    for (index_t c = 0; c < columns; ++c) sum += double(x(n, c)) * double(x(n, c));
    rstd(n) = T(1 / std::sqrt(sum / double(columns) + double(eps)));
    for (index_t c = 0; c < columns; ++c) y(n, c) = x(n, c) * rstd(n) * scale(c);
  }
}

/// Adds to dx and dscale.
template <class T>
void rms_norm_backward(CpuBackend<T>&, In<T, 2> x, In<T, 1> scale, In<T, 1> rstd, In<T, 2> dy,
                       Out<T, 2> dx, Out<T, 1> dscale) {
  const index_t rows = x.shape[0], columns = x.shape[1];
  expects(dy.shape[0] == rows && dy.shape[1] == columns && dx.shape[0] == rows &&
              dx.shape[1] == columns && scale.shape[0] == columns && dscale.shape[0] == columns &&
              rstd.shape[0] == rows,
          "rms_norm_backward: shapes differ");
  for (index_t n = 0; n < rows; ++n) {
    double dot = 0;
    for (index_t c = 0; c < columns; ++c)
      dot += double(dy(n, c)) * double(scale(c)) * double(x(n, c));
    const T r = rstd(n), shrink = T(dot / double(columns) * double(r) * double(r) * double(r));
    for (index_t c = 0; c < columns; ++c) {
      dx(n, c) += r * dy(n, c) * scale(c) - shrink * x(n, c);
      dscale(c) += dy(n, c) * x(n, c) * r;
    }
  }
}

}  // namespace dflash
