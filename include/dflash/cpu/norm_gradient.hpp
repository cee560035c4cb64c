#pragma once

#include <algorithm>

#include "dflash/core/config.hpp"
#include "dflash/cpu/vector.hpp"

namespace dflash::detail {

/// A row of x, the gradient of its normalised and scaled values, and where its own goes, which may
/// be dy.
template <class T>
struct NormRow {
  const T *x, *dy;
  T *dx, rstd;
};

/// The sum over a row of x dy scale; dscale += x dy rstd.                        scale, dscale (C)
template <class T>
[[gnu::always_inline]] inline double norm_gradient_sums(index_t columns, const T* scale,
                                                        const NormRow<T>& row, T* dscale) {
  using V = Vector<T, 64>;
  using Wide = Vector<double, V::lanes / 2 * 8>;
  constexpr index_t short_sum = 4 * V::lanes;  // the longest that is added up in T
  typename Wide::Register low = {}, high = {};
  for (index_t begin = 0; begin < columns; begin += short_sum) {
    typename V::Register some = {};
    each_lanes<V::lanes>(
        begin, std::min(columns, begin + short_sum),
        [&](index_t c, index_t n) __attribute__((always_inline)) {
          typename V::Register gain, x, dy, sum;
          load_lanes(scale + c, n, gain);
          load_lanes(row.x + c, n, x);
          load_lanes(row.dy + c, n, dy);
          load_lanes(dscale + c, n, sum);
          const typename V::Register product = x * dy;
          some += product * gain;
          sum += product * row.rstd;
          store_lanes(sum, n, dscale + c);
        });
    typename HalfOf<V>::Register first, second;
    halve<V>(some, first, second);
    low += __builtin_convertvector(first, typename Wide::Register);
    high += __builtin_convertvector(second, typename Wide::Register);
  }
  low += high;
  return sum_of_lanes<Wide>(low);
}

/// dx of some rows, written or added, and their part of the gradient of scale, added. row(n) tells
/// of a row, once, before it is read; it is in the first cache levels when it is read again. What
/// is written is added to zero, so that compilers fuse the same multiplications and additions
/// either way.                                                        scale, dscale (C)
template <bool Add, class T, class F>
[[gnu::always_inline]] inline void norm_gradient(Range rows, index_t columns, const T* scale,
                                                 T* dscale, F row) {
  using V = Vector<T, 64>;
  for (index_t i = rows.begin; i < rows.end; ++i) {
    const NormRow<T> r = row(i);
    const double mean = norm_gradient_sums(columns, scale, r, dscale) / double(columns),
                 rstd(r.rstd);
    const T shrink = T(mean * rstd * rstd * rstd);
    each_lanes<V::lanes>(
        0, columns, [&](index_t c, index_t n) __attribute__((always_inline)) {
          typename V::Register gain, x, dy, to = {};
          load_lanes(scale + c, n, gain);
          load_lanes(r.x + c, n, x);
          load_lanes(r.dy + c, n, dy);
          if constexpr (Add) load_lanes(r.dx + c, n, to);
          to += r.rstd * dy * gain - shrink * x;
          store_lanes(to, n, r.dx + c);
        });
  }
}

}  // namespace dflash::detail
