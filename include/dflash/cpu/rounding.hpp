#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/config.hpp"
#include "dflash/cpu/bfloat16_vector.hpp"
#include "dflash/cpu/path.hpp"

namespace dflash::detail {

/// x rounded to bfloat16, to nearest even, in the upper half; NaN stays NaN. Without branches.
[[gnu::always_inline]] inline std::uint32_t rounded(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t number = u + 0x7fff + (u >> 16 & 1), nan = u | 0x400000;
  return (u & 0x7fffffff) > 0x7f800000 ? nan : number;
}
/// What rounding leaves of x.
[[gnu::always_inline]] inline float rest(float x) {
  return x - std::bit_cast<float>(rounded(x) & 0xffff0000u);
}

#if defined(__x86_64__)
/// Rounds n values that follow each other, to memory that may hold them as pairs. A function of its
/// own, as the instruction is not on every path that a lambda is compiled for.
[[gnu::target("avx512f")]] inline void round_avx512_bf16(const float* x, index_t n, void* to) {
  auto* out = static_cast<char*>(to);
  Pairs16::Register pairs;
  for (; n >= 32; n -= 32, x += 32, out += sizeof pairs) {
    load_pairs(x, 32, pairs);
    __builtin_memcpy(out, &pairs, sizeof pairs);
  }
  if (n == 0) return;
  load_pairs(x, n, pairs);
  __builtin_memcpy(out, &pairs, std::size_t(n) * sizeof(bfloat16));
}
#endif

/// to = n values, rounded if need be.
template <class T>
[[gnu::always_inline]] inline void store_values(CpuPath, const T* x, index_t n, T* to) {
  std::copy_n(x, n, to);
}
[[gnu::always_inline]] inline void store_values(CpuPath path, const float* x, index_t n,
                                                bfloat16* to) {
#if defined(__x86_64__)
  if (path >= CpuPath::avx512_bf16) return round_avx512_bf16(x, n, to);
#endif
  for (index_t i = 0; i < n; ++i) to[i].bits = std::uint16_t(rounded(x[i]) >> 16);
}

/// The same of f(0) ... f(n - 1), which are of type T.
template <class T, class To, class F>
[[gnu::always_inline]] inline void store_each(CpuPath path, index_t n, To* to, F f) {
  if constexpr (std::is_same_v<T, To>) {
    for (index_t i = 0; i < n; ++i) to[i] = f(i);
  } else {
    constexpr index_t few = 128;
    alignas(64) T some[few];
    for (index_t begin = 0; begin < n; begin += few) {
      const index_t count = std::min(few, n - begin);
      for (index_t i = 0; i < count; ++i) some[i] = f(begin + i);
      store_values(path, some, count, to + begin);
    }
  }
}

}  // namespace dflash::detail
