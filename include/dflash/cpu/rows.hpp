#pragma once

#include <algorithm>
#include <cstdint>

#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/convert.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

/// y(n) = w(ids(n)). Throws if an id is not a row of w.          w (V, C)  ids (N)  y (N, C)
template <class T>
void gather_rows(CpuBackend<T>& backend, InRows<T> w, View<const std::int32_t, 1> ids,
                 Out<T, 2> y) {
  expects(y.shape[0] == ids.shape[0] && y.shape[1] == w.shape[1], "gather_rows: shapes differ");
  const index_t width = w.shape[1];
  w.visit([&](const auto& rows) {
    backend.for_parts(ids.shape[0], width, [&](Range part) {
      for (index_t n = part.begin; n < part.end; ++n) {
        expects(ids(n) >= 0 && ids(n) < w.shape[0], "gather_rows: an id is not a row of w");
        detail::convert_elements(rows.data + ids(n) * width, width, y.data + n * width);
      }
    });
  });
}

/// y(ids(n)) = x(n), ids distinct. Throws if an id is not a row of y.
///                                                                x (N, C)  ids (N)  y (V, C)
template <class T>
void scatter_rows(CpuBackend<T>& backend, In<T, 2> x, View<const std::int32_t, 1> ids,
                  Out<T, 2> y) {
  expects(x.shape[0] == ids.shape[0] && x.shape[1] == y.shape[1], "scatter_rows: shapes differ");
  const index_t width = x.shape[1];
  backend.for_parts(ids.shape[0], width, [&](Range part) {
    for (index_t n = part.begin; n < part.end; ++n) {
      expects(ids(n) >= 0 && ids(n) < y.shape[0], "scatter_rows: an id is not a row of y");
      std::copy_n(x.data + n * width, width, y.data + ids(n) * width);
    }
  });
}

/// best(n) = index of the first largest element of x(n).                   x (N, C)  best (N)
template <class T>
void argmax_rows(CpuBackend<T>& backend, In<T, 2> x, View<std::int32_t, 1> best) {
  const index_t width = x.shape[1];
  expects(best.shape[0] == x.shape[0] && (width > 0 || x.shape[0] == 0),
          "argmax_rows: shapes differ, or rows are empty");
  backend.for_parts(x.shape[0], width, [&](Range part) {
    detail::on_path(
        backend.path(), [=]() __attribute__((always_inline)) {
          for (index_t n = part.begin; n < part.end; ++n) {
            const T* const row = x.data + n * width;
            const T* const found = std::find(row, row + width, detail::largest(row, width));
            best.data[n] = found < row + width ? std::int32_t(found - row) : 0;
          }
        });
  });
}

}  // namespace dflash
