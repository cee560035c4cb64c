#pragma once

#include <cmath>

#include "dflash/core/operations.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

/// cos, sin = factor * cos, sin of position(n) * frequency(i), computed in double.
///                                             position (N)  frequency (D / 2)  cos, sin (N, D / 2)
template <class T>
void rope_table(CpuBackend<T>& backend, View<const index_t, 1> position,
                View<const double, 1> frequency, double factor, Out<T, 2> cos, Out<T, 2> sin) {
  const index_t rows = position.shape[0], half = frequency.shape[0];
  expects(
      cos.shape[0] == rows && cos.shape[1] == half && sin.shape[0] == rows && sin.shape[1] == half,
      "rope_table: shapes differ");
  backend.for_parts(rows, 32 * half, [&](Range part) {
    for (index_t n = part.begin; n < part.end; ++n)
      for (index_t i = 0; i < half; ++i) {
        const double angle = double(position(n)) * frequency(i);
        cos(n, i) = T(factor * std::cos(angle));
        sin(n, i) = T(factor * std::sin(angle));
      }
  });
}

namespace detail {

/// Turns the pairs (i, i + half) of a head by its row's angles, times sign.
template <class T>
[[gnu::always_inline]] inline void turn_head(index_t half, const T* __restrict cos,
                                             const T* __restrict sin, T sign, T* head) {
  T* __restrict lower = head;
  T* __restrict upper = head + half;
  for (index_t i = 0; i < half; ++i) {
    const T a = lower[i], b = upper[i], turn = sign * sin[i];
    lower[i] = a * cos[i] - b * turn;
    upper[i] = b * cos[i] + a * turn;
  }
}

}  // namespace detail

/// Turns the pairs (i, i + D / 2) of each head by its row's angles, in place; backward turns back
/// (arXiv:2104.09864). With tables narrower than D / 2 the rest of a head stays as it is.
///                                                     cos, sin (N, D / 2)  x (N, heads, D)
template <class T>
void rope(CpuBackend<T>& backend, In<T, 2> cos, In<T, 2> sin, Rotate rotate, Out<T, 3> x) {
  const index_t half = cos.shape[1], heads = x.shape[1], dim = x.shape[2];
  expects(cos.shape[0] == x.shape[0] && sin.shape[0] == x.shape[0] && sin.shape[1] == half &&
              2 * half <= dim,
          "rope: shapes differ");
  const T sign = rotate == Rotate::forward ? T(1) : T(-1);
  backend.for_parts(x.shape[0], 2 * heads * dim, [&](Range part) {
    detail::on_path(
        backend.path(), [=]() __attribute__((always_inline)) {
          for (index_t n = part.begin; n < part.end; ++n) {
            for (index_t h = 0; h < heads; ++h)
              detail::turn_head(half, cos.data + n * half, sin.data + n * half, sign,
                                x.data + (n * heads + h) * dim);
          }
        });
  });
}

}  // namespace dflash
