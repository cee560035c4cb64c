#pragma once

#include <algorithm>
#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// y = value.
template <class T, class U, int Rank>
void fill(CpuBackend<T>&, View<U, Rank> y, std::type_identity_t<U> value) {
  std::fill_n(y.data, y.size(), value);
}

/// y += x.
template <class T, class X, int Rank>
requires(std::is_same_v<std::remove_const_t<X>, T>) void add(CpuBackend<T>&, View<X, Rank> x,
                                                             View<T, Rank> y) {
  expects(x.size() == y.size(), "add: shapes differ");
  for (index_t i = 0; i < y.size(); ++i) y.data[i] += x.data[i];
}

/// y(n) += x.                                                              x (C)  y (N, C)
template <class T>
void add_rows(CpuBackend<T>&, In<T, 1> x, Out<T, 2> y) {
  expects(x.shape[0] == y.shape[1], "add_rows: x must be as wide as y");
  for (index_t n = 0; n < y.shape[0]; ++n)
    for (index_t c = 0; c < y.shape[1]; ++c) y(n, c) += x(c);
}

/// y(n) *= x(n).                                                           x (N)  y (N, C)
template <class T>
void scale_rows(CpuBackend<T>&, In<T, 1> x, Out<T, 2> y) {
  expects(x.shape[0] == y.shape[0], "scale_rows: x must be as long as y");
  for (index_t n = 0; n < y.shape[0]; ++n)
    for (index_t c = 0; c < y.shape[1]; ++c) y(n, c) *= x(n);
}

/// y += sum over n of x(n).                                                x (N, C)  y (C)
template <class T>
void sum_rows(CpuBackend<T>&, In<T, 2> x, Out<T, 1> y) {
  expects(x.shape[1] == y.shape[0], "sum_rows: y must be as wide as x");
  for (index_t c = 0; c < x.shape[1]; ++c) {
    double sum = 0;
    for (index_t n = 0; n < x.shape[0]; ++n) sum += double(x(n, c));
    y(c) += T(sum);
  }
}

}  // namespace dflash
