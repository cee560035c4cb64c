#pragma once

#include <cmath>
#include <type_traits>

#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/norm_gradient.hpp"
#include "dflash/cpu/rounding.hpp"
#include "dflash/cpu/row_sums.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

namespace detail {

/// In rows at least so long, the lines that will be written are fetched while x is read: stores
/// would wait for them.
inline constexpr index_t long_row = 512;

template <bool Long = false, class T, class To = T>
[[gnu::always_inline]] inline T rstd_of_row(index_t columns, const T* x, T eps, To* y = nullptr) {
  const auto fetch = [=](index_t i) __attribute__((always_inline)) {
    if constexpr (Long) __builtin_prefetch(y + i, 1);
  };
  const double mean = sum_of_products_with(fetch, columns, x, x) / double(columns);
  return T(1 / std::sqrt(mean + double(eps)));
}
template <class T, class To>
[[gnu::always_inline]] inline void scale_row(CpuPath path, index_t columns, const T* x, T rstd,
                                             const T* scale, To* y) {
  store_each<T>(
      path, columns,
      y, [=](index_t c) __attribute__((always_inline)) { return x[c] * rstd * scale[c]; });
}

}  // namespace detail

/// y = x rstd scale with rstd = 1 / sqrt(mean(x^2) + eps), row by row (arXiv:1910.07467); rounded
/// if y lies in bfloat16, else y may be x.
///                                                         x, y (N, C)  scale (C)  rstd (N)
template <class T>
void rms_norm(CpuBackend<T>& backend, In<T, 2> x, In<T, 1> scale, std::type_identity_t<T> eps,
              OutRows<T> y, Out<T, 1> rstd) {
  const index_t columns = x.shape[1];
  expects(y.shape[0] == x.shape[0] && y.shape[1] == columns && scale.shape[0] == columns &&
              rstd.shape[0] == x.shape[0],
          "rms_norm: shapes differ");
  y.visit([&](const auto& to) {
    backend.for_parts(x.shape[0], columns, [&](Range part) {
      detail::on_path(
          backend.path(), [ =, path = backend.path() ]() __attribute__((always_inline)) {
            const auto rows = [=](auto is_long) __attribute__((always_inline)) {
              for (index_t n = part.begin; n < part.end; ++n) {
                const T* const from = x.data + n * columns;
                auto* const row = to.data + n * columns;
                const T r = rstd.data[n] =
                    detail::rstd_of_row<decltype(is_long)::value>(columns, from, eps, row);
                detail::scale_row(path, columns, from, r, scale.data, row);
              }
            };
            if (columns >= detail::long_row)
              rows(std::true_type());
            else
              rows(std::false_type());
          });
    });
  });
}

/// Adds to dx and dscale.
template <class T>
void rms_norm_backward(CpuBackend<T>& backend, In<T, 2> x, In<T, 1> scale, In<T, 1> rstd,
                       In<T, 2> dy, Out<T, 2> dx, Out<T, 1> dscale) {
  const index_t rows = x.shape[0], columns = x.shape[1];
  expects(dy.shape[0] == rows && dy.shape[1] == columns && dx.shape[0] == rows &&
              dx.shape[1] == columns && scale.shape[0] == columns && dscale.shape[0] == columns &&
              rstd.shape[0] == rows,
          "rms_norm_backward: shapes differ");
  detail::add_row_sums(backend, rows, columns, dscale.data, [&](Range part, T* sum) {
    detail::on_path(
        backend.path(), [=]() __attribute__((always_inline)) {
          detail::norm_gradient<true>(
              part, columns, scale.data, sum, [=](index_t n) __attribute__((always_inline)) {
                return detail::NormRow<T>{x.data + n * columns, dy.data + n * columns,
                                          dx.data + n * columns, rstd.data[n]};
              });
        });
  });
}

}  // namespace dflash
