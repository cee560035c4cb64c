#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dflash/core/config.hpp"
#include "dflash/cpu/path.hpp"
#include "dflash/cpu/vector.hpp"

namespace dflash::detail {

/// e^x within two units in the last place, for loops that the compiler turns into vectors: no
/// branches, no calls. 0 below the normal numbers; NaN stays NaN.
template <std::floating_point T>
[[gnu::always_inline]] inline T exponential(T x) {
  constexpr bool single = sizeof(T) == 4;
  using Bits = std::conditional_t<single, std::int32_t, std::int64_t>;
  constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023;
  // Adding 1.5 * 2^mantissa rounds to a whole number and leaves it in the lowest bits, where limits
  // can be compared as integers.
  constexpr T shift = T(Bits(3) << (mantissa - 1));
  constexpr Bits zero = std::bit_cast<Bits>(shift);
  Bits n = std::bit_cast<Bits>(T(x * T(1.4426950408889634) + shift));
  n = std::min(std::max(n, Bits(zero - bias)), Bits(zero + bias));
  const T power = std::bit_cast<T>(n) - shift;
  T r, p;
  if constexpr (single) {
    r = (x - power * 0.693359375f) - power * -2.12194440e-4f;
    p = 1.98910805e-4f;
    p = p * r + 1.393373072e-3f;
    p = p * r + 8.333310845e-3f;
    p = p * r + 4.16664642e-2f;
    p = p * r + 0.1666666668f;
    p = p * r + 0.5f;
  } else {
    r = (x - power * 0.693145751953125) - power * 1.42860682030941723212e-6;
    p = 2.09147553258932022e-9;
    p = p * r + 2.51053127296221018e-8;
    p = p * r + 2.75572734787185805e-7;
    p = p * r + 2.75572551700008874e-6;
    p = p * r + 2.48015873256774619e-5;
    p = p * r + 1.98412698750022788e-4;
    p = p * r + 1.38888888888837112e-3;
    p = p * r + 8.33333333332608312e-3;
    p = p * r + 4.16666666666666698e-2;
    p = p * r + 0.16666666666666671;
    p = p * r + 0.5;
  }
  const T scale = std::bit_cast<T>(Bits((n - zero + bias) << mantissa));
  const T y = (p * (r * r) + r + T(1)) * scale;
  return std::bit_cast<T>(Bits(std::bit_cast<Bits>(y) & -Bits((n > zero - bias) | (x != x))));
}

/// The scalar, or that of a vector's lanes.
template <class X>
struct LanesOf {
  using Scalar = X;
  using Bits = std::conditional_t<sizeof(X) == 4, std::int32_t, std::int64_t>;
};
template <class X>
requires(!std::floating_point<X>) struct LanesOf<X> {
  using Scalar = std::remove_cvref_t<decltype(X()[0])>;
  typedef typename LanesOf<Scalar>::Bits Bits __attribute__((vector_size(sizeof(X))));
};

/// x becomes 2^x within two units in the last place, for numbers and vectors of them below the
/// largest exponent. 0 below the normal numbers; NaN stays NaN.
template <class X>
[[gnu::always_inline]] inline void power_of_two(X& x) {
  using T = typename LanesOf<X>::Scalar;
  using Bits = typename LanesOf<X>::Bits;
  constexpr bool single = sizeof(T) == 4;
  constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023;
  // Adding 1.5 * 2^mantissa rounds to a whole number and leaves it in the lowest bits, here with
  // the bias of exponents.
  constexpr T shift = T((std::int64_t(3) << (mantissa - 1)) + bias);
  const X least = X{} - T(bias);
  x = x < least ? least : x;
  const X n = x + shift, r = x - (n - shift);
  X p;
  if constexpr (single) {
    p = r * 1.545316295e-4f + 1.339086366e-3f;
    p = p * r + 9.618082557e-3f;
    p = p * r + 5.550357114e-2f;
    p = p * r + 0.2402265076f;
    p = p * r + 0.693147188f;
  } else {
    p = r * 4.4549605981865186e-10 + 7.072585949269223e-09;
    p = p * r + 1.0178062445845774e-07;
    p = p * r + 1.321544258792169e-06;
    p = p * r + 1.525273382983612e-05;
    p = p * r + 0.0001540353044173605;
    p = p * r + 0.0013333558146416936;
    p = p * r + 0.009618129107606888;
    p = p * r + 0.0555041086648216;
    p = p * r + 0.24022650695910097;
    p = p * r + 0.6931471805599453;
  }
  p = p * r + T(1);
  if constexpr (std::floating_point<X>)
    x = p * std::bit_cast<X>(Bits(std::bit_cast<Bits>(n) << mantissa));
  else
    x = p * (X)((Bits)n << mantissa);
}

/// The sixteen lanes combined pairwise, always in the same order.
template <class T, class F>
[[gnu::always_inline]] inline T fold(T (&lane)[16], F f) {
  for (int l = 0; l < 8; ++l) lane[l] = f(lane[l], lane[l + 8]);
  for (int l = 0; l < 4; ++l) lane[l] = f(lane[l], lane[l + 4]);
  return f(f(lane[0], lane[2]), f(lane[1], lane[3]));
}

/// The largest element; -infinity if there is none.
template <class T>
[[gnu::always_inline]] inline T largest(const T* x, index_t n) {
  T lane[16];
  for (T& l : lane) l = -std::numeric_limits<T>::infinity();
  index_t i = 0;
  for (; i + 64 <= n; i += 64)
    for (int l = 0; l < 16; ++l) {
      T top = lane[l];
      for (int j = 0; j < 64; j += 16) top = top < x[i + j + l] ? x[i + j + l] : top;
      lane[l] = top;
    }
  for (; i < n; ++i) lane[0] = lane[0] < x[i] ? x[i] : lane[0];
  return fold(lane, [](T a, T b) { return a < b ? b : a; });
}

/// Sum of the products of the factors' elements, in double, in sixteen interleaved parts. each(i)
/// is called on the way.
template <class F, class T, class... U>
[[gnu::always_inline]] inline double sum_of_products_with(F each, index_t n, const T* x,
                                                          const U*... more) {
  alignas(64) double lane[16] = {};
  index_t i = 0;
  for (; i + 16 <= n; i += 16) {
    each(i);
    for (int l = 0; l < 16; ++l) lane[l] += (double(x[i + l]) * ... * double(more[i + l]));
  }
  for (int l = 0; i + l < n; ++l) lane[l] += (double(x[i + l]) * ... * double(more[i + l]));
  // Compilers make vectors of the loops above, but not of the sixteen lanes' sum.
  using Wide = Vector<double, 64>;
  typename Wide::Register sum = *(const typename Wide::Memory*)lane;
  sum += *(const typename Wide::Memory*)(lane + 8);
  return sum_of_lanes<Wide>(sum);
}

template <class T, class... U>
[[gnu::always_inline]] inline double sum_of_products(index_t n, const T* x, const U*... more) {
  return sum_of_products_with([](index_t) __attribute__((always_inline)){}, n, x, more...);
}

template <class F>
[[gnu::noinline]] void run_portable(F& f) {
  f();
}

#if defined(__x86_64__)
template <class F>
[[gnu::noinline, gnu::target("avx2,fma")]] void run_avx2(F& f) {
  f();
}
template <class F>
[[gnu::noinline, gnu::target("avx2,fma,avx512f")]] void run_avx512(F& f) {
  f();
}
#endif

/// f(), compiled for the path's vectors if f is always_inline.
template <class F>
void on_path(CpuPath path, F f) {
#if defined(__x86_64__)
  if (path >= CpuPath::avx512) return run_avx512(f);
  if (path == CpuPath::avx2) return run_avx2(f);
#endif
  run_portable(f);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] inline index_t square_roots_avx2(float* x, index_t n) {
  index_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, _mm256_sqrt_ps(_mm256_loadu_ps(x + i)));
  return i;
}
[[gnu::target("avx2")]] inline index_t square_roots_avx2(double* x, index_t n) {
  index_t i = 0;
  for (; i + 4 <= n; i += 4) _mm256_storeu_pd(x + i, _mm256_sqrt_pd(_mm256_loadu_pd(x + i)));
  return i;
}
#endif

/// x(i) = sqrt(x(i)). Compilers make no vectors of a function that may set errno.
template <class T>
void square_roots(CpuPath path, T* x, index_t n) {
  index_t i = 0;
#if defined(__x86_64__)
  if (path != CpuPath::portable) i = square_roots_avx2(x, n);
#endif
  for (; i < n; ++i) x[i] = std::sqrt(x[i]);
}

}  // namespace dflash::detail
