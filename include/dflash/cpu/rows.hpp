#pragma once

#include <algorithm>
#include <cstdint>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// y(n) = w(ids(n)). Throws if an id is not a row of w.                    w (V, C)  ids (N)  y (N,
/// C)
template <class T>
void gather_rows(CpuBackend<T>&, In<T, 2> w, View<const std::int32_t, 1> ids, Out<T, 2> y) {
  expects(y.shape[0] == ids.shape[0] && y.shape[1] == w.shape[1], "gather_rows: shapes differ");
  for (index_t n = 0; n < ids.shape[0]; ++n) {
    expects(ids(n) >= 0 && ids(n) < w.shape[0], "gather_rows: an id is not a row of w");
    std::copy_n(&w.data[ids(n) * w.shape[1]], w.shape[1], &y.data[n * y.shape[1]]);
  }
}

/// y(ids(n)) = x(n), ids distinct. Throws if an id is not a row of y.      x (N, C)  ids (N)  y (V,
/// C)
template <class T>
void scatter_rows(CpuBackend<T>&, In<T, 2> x, View<const std::int32_t, 1> ids, Out<T, 2> y) {
  expects(x.shape[0] == ids.shape[0] && x.shape[1] == y.shape[1], "scatter_rows: shapes differ");
  for (index_t n = 0; n < ids.shape[0]; ++n) {
    expects(ids(n) >= 0 && ids(n) < y.shape[0], "scatter_rows: an id is not a row of y");
    std::copy_n(&x.data[n * x.shape[1]], x.shape[1], &y.data[ids(n) * y.shape[1]]);
  }
}

/// best(n) = index of the first largest element of x(n).                   x (N, C)  best (N)
template <class T>
void argmax_rows(CpuBackend<T>&, In<T, 2> x, View<std::int32_t, 1> best) {
  expects(best.shape[0] == x.shape[0], "argmax_rows: shapes differ");
  for (index_t n = 0; n < x.shape[0]; ++n) {
    const T* row = x.data + n * x.shape[1];
    best(n) = std::int32_t(std::max_element(row, row + x.shape[1]) - row);
  }
}

}  // namespace dflash
