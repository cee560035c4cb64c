#pragma once

#include <algorithm>

#include "dflash/core/config.hpp"
#include "dflash/cpu/gemm_tile.hpp"

namespace dflash::detail {

/// A row of x, the gradient of its normalised and scaled values, and where its own goes, which may
/// be dy.
template <class T>
struct NormRow {
  const T *x, *dy;
  T *dx, rstd;
  T shrink = 0;  // what of x is taken from its gradient
};

/// The sum of a vector, pairwise.
template <int Lanes, class Register>
[[gnu::always_inline]] inline double sum_of_lanes(Register& lane) {
  for (int half = Lanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

/// Lanes of a vector that begin at x; those from n on are zero.
template <class Register, class T>
[[gnu::always_inline]] inline void load_lanes(const T* x, index_t n, Register& lanes) {
  if (n == index_t(sizeof(Register) / sizeof(T))) {
    lanes = *(const typename Vector<T, sizeof(Register)>::Memory*)x;
    return;
  }
  lanes = Register{};
  for (index_t l = 0; l < n; ++l) lanes[l] = x[l];
}
template <class Register, class T>
[[gnu::always_inline]] inline void store_lanes(const Register& lanes, index_t n, T* x) {
  if (n == index_t(sizeof(Register) / sizeof(T)))
    *(typename Vector<T, sizeof(Register)>::Memory*)x = lanes;
  else
    for (index_t l = 0; l < n; ++l) x[l] = lanes[l];
}

/// Columns [c, c + n) of norm_gradient_step, at most a vector; `some` takes their x dy scale.
template <bool Add, bool Done, bool Next, class T, class Register>
[[gnu::always_inline]] inline void norm_gradient_lanes(index_t c, index_t n, const T* scale,
                                                       const NormRow<T>& done,
                                                       const NormRow<T>& next, T* dscale,
                                                       Register& some) {
  Register gain, x, dy, to = {};
  load_lanes(scale + c, n, gain);
  if constexpr (Done) {
    load_lanes(done.x + c, n, x);
    load_lanes(done.dy + c, n, dy);
    if constexpr (Add) load_lanes(done.dx + c, n, to);
    to += done.rstd * dy * gain - done.shrink * x;
    store_lanes(to, n, done.dx + c);
  }
  if constexpr (Next) {
    load_lanes(next.x + c, n, x);
    load_lanes(next.dy + c, n, dy);
    load_lanes(dscale + c, n, to);
    const Register product = x * dy;
    some += product * gain;
    to += product * next.rstd;
    store_lanes(to, n, dscale + c);
  }
}

/// dx of `done`, written or added, and the sums of `next`: its shrink, the mean of x dy scale times
/// rstd^3, and what it adds to the gradient of scale. The two go together because only the sums of
/// a whole row give its shrink: so all streams of memory flow all the time. What is written is
/// added to zero, so that compilers fuse the same multiplications and additions either way.
///                                                                              scale, dscale (C)
template <bool Add, bool Done, bool Next, class T>
[[gnu::always_inline]] inline void norm_gradient_step(index_t columns, const T* scale,
                                                      const NormRow<T>& done, NormRow<T>& next,
                                                      T* dscale) {
  using V = Vector<T, 64>;
  using Half = typename Vector<T, 32>::Register;
  using Wide = Vector<double, V::lanes / 2 * 8>;
  constexpr index_t short_sum = 4 * V::lanes;  // the longest that is added up in T
  typename Wide::Register low = {}, high = {};
  for (index_t c = 0; c < columns;) {
    typename V::Register some = {};
    const index_t end = std::min(columns, c + short_sum);
    for (; c + V::lanes <= end; c += V::lanes)
      norm_gradient_lanes<Add, Done, Next>(c, V::lanes, scale, done, next, dscale, some);
    if (c < end) {
      norm_gradient_lanes<Add, Done, Next>(c, end - c, scale, done, next, dscale, some);
      c = end;
    }
    if constexpr (Next) {
      Half halves[2];
      __builtin_memcpy(halves, &some, sizeof some);
      low += __builtin_convertvector(halves[0], typename Wide::Register);
      high += __builtin_convertvector(halves[1], typename Wide::Register);
    }
  }
  if constexpr (Next) {
    low += high;
    const double mean = sum_of_lanes<Wide::lanes>(low) / double(columns), r(next.rstd);
    next.shrink = T(mean * r * r * r);
  }
}

/// dx of some rows, written or added, and their part of the gradient of scale, added. row(n) tells
/// of a row, once, before it is read.                                           scale, dscale (C)
template <bool Add, class T, class F>
[[gnu::always_inline]] inline void norm_gradient(Range rows, index_t columns, const T* scale,
                                                 T* dscale, F row) {
  NormRow<T> next = row(rows.begin);
  norm_gradient_step<Add, false, true>(columns, scale, next, next, dscale);
  for (index_t n = rows.begin + 1; n < rows.end; ++n) {
    const NormRow<T> done = next;
    next = row(n);
    norm_gradient_step<Add, true, true>(columns, scale, done, next, dscale);
  }
  norm_gradient_step<Add, true, false>(columns, scale, next, next, dscale);
}

}  // namespace dflash::detail
