#pragma once

#include <algorithm>
#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/row_sums.hpp"

namespace dflash {

/// y = value.
template <class T, class U, int Rank>
void fill(CpuBackend<T>& backend, View<U, Rank> y, std::type_identity_t<U> value) {
  backend.for_parts(y.size(), 1,
                    [&](Range part) { std::fill_n(y.data + part.begin, part.size(), value); });
}

/// y += x.
template <class T, class X, int Rank>
requires(std::is_same_v<std::remove_const_t<X>, T>) void add(CpuBackend<T>& backend,
                                                             View<X, Rank> x, View<T, Rank> y) {
  expects(x.size() == y.size(), "add: shapes differ");
  backend.for_parts(y.size(), 1, [from = x.data, to = y.data](Range part) {
    for (index_t i = part.begin; i < part.end; ++i) to[i] += from[i];
  });
}

/// y(n) += x.                                                              x (C)  y (N, C)
template <class T>
void add_rows(CpuBackend<T>& backend, In<T, 1> x, Out<T, 2> y) {
  expects(x.shape[0] == y.shape[1], "add_rows: x must be as wide as y");
  const index_t columns = y.shape[1];
  backend.for_parts(y.shape[0], columns, [=](Range part) {
    for (index_t n = part.begin; n < part.end; ++n)
      for (index_t c = 0; c < columns; ++c) y.data[n * columns + c] += x.data[c];
  });
}

/// y(n) *= x(n).                                                           x (N)  y (N, C)
template <class T>
void scale_rows(CpuBackend<T>& backend, In<T, 1> x, Out<T, 2> y) {
  expects(x.shape[0] == y.shape[0], "scale_rows: x must be as long as y");
  const index_t columns = y.shape[1];
  backend.for_parts(y.shape[0], columns, [=](Range part) {
    for (index_t n = part.begin; n < part.end; ++n) {
      const T factor = x(n);
      for (index_t c = 0; c < columns; ++c) y.data[n * columns + c] *= factor;
    }
  });
}

/// y += sum over n of x(n).                                                x (N, C)  y (C)
template <class T>
void sum_rows(CpuBackend<T>& backend, In<T, 2> x, Out<T, 1> y) {
  const index_t columns = x.shape[1];
  expects(columns == y.shape[0], "sum_rows: y must be as wide as x");
  detail::add_row_sums(backend, x.shape[0], columns, y.data, [&](Range part, T* sum) {
    for (index_t n = part.begin; n < part.end; ++n)
      for (index_t c = 0; c < columns; ++c) sum[c] += x.data[n * columns + c];
  });
}

}  // namespace dflash
