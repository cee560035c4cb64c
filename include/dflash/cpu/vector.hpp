#pragma once

#include "dflash/core/config.hpp"

namespace dflash::detail {

/// The compiler's own vectors. Functions take them by reference, as how they are passed by value
/// depends on the instructions that a function is compiled for.
template <class T, int Bytes>
struct Vector {
  using Element = T;
  typedef T Register __attribute__((vector_size(Bytes)));
  typedef T Memory __attribute__((vector_size(Bytes), aligned(alignof(T)), may_alias));
  static constexpr int lanes = Bytes / sizeof(T);
};

template <class V>
using HalfOf = Vector<typename V::Element, V::lanes / 2 * sizeof(typename V::Element)>;

/// The first half of a vector's lanes and the second.
template <class V>
[[gnu::always_inline]] inline void halve(const typename V::Register& both,
                                         typename HalfOf<V>::Register& low,
                                         typename HalfOf<V>::Register& high) {
  const auto* halves = (const typename HalfOf<V>::Memory*)&both;
  low = halves[0], high = halves[1];
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

/// f(i, n) for elements [i, i + n) of [begin, end): whole vectors of so many lanes, and what is
/// left.
template <int Lanes, class F>
[[gnu::always_inline]] inline void each_lanes(index_t begin, index_t end, F f) {
  index_t i = begin;
  for (; i + Lanes <= end; i += Lanes) f(i, index_t(Lanes));
  if (i < end) f(i, end - i);
}

/// The sum of a vector's lanes: one half and the other, and so on.
template <class V>
[[gnu::always_inline]] inline auto sum_of_lanes(const typename V::Register& lane) {
  if constexpr (V::lanes == 2) {
    return lane[0] + lane[1];
  } else {
    typename HalfOf<V>::Register low, high;
    halve<V>(lane, low, high);
    low += high;
    return sum_of_lanes<HalfOf<V>>(low);
  }
}

}  // namespace dflash::detail
