#pragma once

#include <cmath>

#include "dflash/core/operations.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// cos, sin = factor * cos, sin of position(n) * frequency(i), computed in double.
///                                             position (N)  frequency (D / 2)  cos, sin (N, D / 2)
template <class T>
void rope_table(CpuBackend<T>&, View<const index_t, 1> position, View<const double, 1> frequency,
                double factor, Out<T, 2> cos, Out<T, 2> sin) {
  const index_t rows = position.shape[0], half = frequency.shape[0];
  expects(
      cos.shape[0] == rows && cos.shape[1] == half && sin.shape[0] == rows && sin.shape[1] == half,
      "rope_table: shapes differ");
  for (index_t n = 0; n < rows; ++n)
    for (index_t i = 0; i < half; ++i) {
      const double angle = double(position(n)) * frequency(i);
      cos(n, i) = T(factor * std::cos(angle));
      sin(n, i) = T(factor * std::sin(angle));
    }
}

/// Turns the pairs (i, i + D / 2) of each head by its row's angles, in place; backward turns back.
///                                                     cos, sin (N, D / 2)  x (N, heads, D)
template <class T>
void rope(CpuBackend<T>&, In<T, 2> cos, In<T, 2> sin, Rotate rotate, Out<T, 3> x) {
  const index_t half = cos.shape[1];
  expects(cos.shape[0] == x.shape[0] && sin.shape[0] == x.shape[0] && sin.shape[1] == half &&
              2 * half <= x.shape[2],
          "rope: shapes differ");
  const T sign = rotate == Rotate::forward ? T(1) : T(-1);
  for (index_t n = 0; n < x.shape[0]; ++n)
    for (index_t h = 0; h < x.shape[1]; ++h)
      for (index_t i = 0; i < half; ++i) {
        const T c = cos(n, i), s = sign * sin(n, i), a = x(n, h, i), b = x(n, h, i + half);
        x(n, h, i) = a * c - b * s;
        x(n, h, i + half) = b * c + a * s;
      }
}

}  // namespace dflash
