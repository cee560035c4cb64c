#pragma once

#include <algorithm>

#include "dflash/cpu/gemm_tile.hpp"
#include "dflash/cpu/vector.hpp"

#if defined(__x86_64__)

/// Pairs of bfloat16 by AVX512-BF16's conversion: rounded to nearest even.
namespace dflash::detail {

using Floats16 = Vector<float, 64>;
using Pairs16 = Vector<bfloat16_pair, 64>;

// Instructions rather than intrinsics, for the reasons that DotStep gives.

/// Thirty-two values that follow each other.
[[gnu::always_inline]] inline void pair_up(const Floats16::Register& low,
                                           const Floats16::Register& high, Pairs16::Register& to) {
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=?v"(to) : "?v"(low), "?v"(high));
}

/// Each element of one row with that of the next.
[[gnu::always_inline]] inline void pair_rows(const Floats16::Register& row,
                                             const Floats16::Register& next,
                                             Pairs16::Register& to) {
  constexpr Pairs16::Register places = {0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005,
                                        0x160006, 0x170007, 0x180008, 0x190009, 0x1a000a, 0x1b000b,
                                        0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f};
  pair_up(row, next, to);
  asm("vpermw %1, %2, %0" : "=?v"(to) : "?v"(to), "?v"(places));
}

/// Up to sixteen values, zeros behind them.
[[gnu::always_inline]] inline void load_some(const float* x, index_t n, Floats16::Register& to) {
  load_lanes(x, std::clamp<index_t>(n, 0, Floats16::lanes), to);
}

/// Sixteen pairs of up to thirty-two values, zeros behind them.
[[gnu::always_inline]] inline void load_pairs(const float* x, index_t n, Pairs16::Register& to) {
  Floats16::Register low, high;
  load_some(x, n, low);
  load_some(x + 16, n - 16, high);
  pair_up(low, high, to);
}

}  // namespace dflash::detail

#endif
