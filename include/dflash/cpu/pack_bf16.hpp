#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dflash/core/bfloat16.hpp"
#include "dflash/cpu/bfloat16_vector.hpp"
#include "dflash/cpu/gemm_kernel.hpp"
#include "dflash/cpu/pack.hpp"
#include "dflash/cpu/rounding.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash::detail {

[[gnu::always_inline]] inline bfloat16_pair pair_of(float first, float second) {
  return rounded(first) >> 16 | (rounded(second) & 0xffff0000u);
}

#if defined(__x86_64__)
/// Whole panels of 32 columns, `panel_step` apart, of two rows; returns how many columns. A
/// function of its own like round_avx512_bf16.
[[gnu::target("avx512f")]] inline index_t pair_rows_avx512_bf16(const float* x, const float* next,
                                                                index_t columns, bfloat16_pair* to,
                                                                index_t panel_step) {
  index_t j = 0;
  for (; j + 32 <= columns; j += 32, to += panel_step)
    for (index_t half = 0; half < 32; half += 16) {
      Floats16::Register row, following;
      Pairs16::Register pairs;
      load_some(x + j + half, 16, row);
      load_some(next + j + half, 16, following);
      pair_rows(row, following, pairs);
      *(Pairs16::Memory*)(to + half) = pairs;
    }
  return j;
}
#endif

/// n values in pairs, the last maybe with a zero, filled up with zeros to `depth` pairs; with
/// `split` their rests as well, `depth` pairs further.
[[gnu::always_inline]] inline void pack_pairs(CpuPath path, const float* x, index_t n,
                                              index_t depth, bool split, bfloat16_pair* to) {
  const index_t whole = n / 2;
  index_t done = 0;
#if defined(__x86_64__)
  if (path >= CpuPath::avx512_bf16) {
    round_avx512_bf16(x, 2 * whole, to);
    done = whole;
  }
#endif
  for (index_t i = done; i < whole; ++i) to[i] = pair_of(x[2 * i], x[2 * i + 1]);
  std::fill(to + whole, to + depth, 0u);
  if (n % 2 != 0) to[whole] = pair_of(x[n - 1], 0);
  if (!split) return;
  to += depth;
  for (index_t i = 0; i < whole; ++i) to[i] = pair_of(rest(x[2 * i]), rest(x[2 * i + 1]));
  std::fill(to + whole, to + depth, 0u);
  if (n % 2 != 0) to[whole] = pair_of(rest(x[n - 1]), 0);
}

/// Of values that are in bfloat16: pairs of what is there, their rests zero.
[[gnu::always_inline]] inline void pack_pairs(CpuPath, const bfloat16* x, index_t n, index_t depth,
                                              bool split, bfloat16_pair* to) {
  const index_t whole = n / 2;
  static_assert(std::endian::native == std::endian::little);  // values lie like pairs
  std::memcpy(to, x, std::size_t(whole) * sizeof *to);
  std::fill(to + whole, to + (split ? 2 * depth : depth), 0u);
  if (n % 2 != 0) to[whole] = x[n - 1].bits;
}

/// Rows k, k + 1 of some columns as pairs; rests if `Rest`.
template <bool Rest>
[[gnu::always_inline]] inline void pair_rows(const float* x, const float* next, index_t columns,
                                             bfloat16_pair* to) {
  for (index_t j = 0; j < columns; ++j)
    to[j] = Rest ? pair_of(rest(x[j]), rest(next[j])) : pair_of(x[j], next[j]);
}
template <bool Rest>
[[gnu::always_inline]] inline void pair_rows(const bfloat16* x, const bfloat16* next,
                                             index_t columns, bfloat16_pair* to) {
  for (index_t j = 0; j < columns; ++j)
    to[j] = Rest ? 0u : x[j].bits | std::uint32_t(next[j].bits) << 16;
}

/// What lies beyond the last row.
template <class T>
inline constexpr std::array<T, 64> zero_row{};

/// Rows [ks) of b, which has k, as panels of pairs of columns [columns). Ranges of rows begin with
/// whole steps of the kernel.                                             to (padded(columns), k)
template <class A, class From>
void pack_panels(const GemmKernel<float, A, bfloat16_pair>& kernel, Strided<From> b, Range ks,
                 index_t k, Range columns, bfloat16_pair* to) {
  const index_t depth = kernel.depth(k), stored = kernel.stored_depth(k),
                panel = kernel.panel_columns(), first = ks.begin / 2,
                end = ks.end < k ? ks.end / 2 : depth;
  const bool split = kernel.split;
  const CpuPath path = kernel.path;
  // f(first column, columns, width of the panel, where it begins)
  const auto each_panel = [=](auto&& f) __attribute__((always_inline)) {
    for (index_t j = columns.begin; j < columns.end; j += panel) {
      const index_t left = std::min(columns.end - j, panel);
      f(j, left, kernel.width(left), to + (j - columns.begin) * stored);
    }
  };
  on_path(
      path, [=]() __attribute__((always_inline)) {
        each_panel([&](index_t, index_t left, index_t width,
                       bfloat16_pair * start) __attribute__((always_inline)) {
          if (left == width) return;
          std::fill(start + first * width, start + end * width, 0u);
          if (split) std::fill(start + (depth + first) * width, start + (depth + end) * width, 0u);
        });
        if (b.row_step == 1) {
          // Columns are rounded one by one, and turned in strips.
          constexpr index_t strip = 64, step = 2 * strip + 16;
          alignas(64) bfloat16_pair turned[32 * step];
          each_panel([&](index_t j, index_t left, index_t width,
                         bfloat16_pair * start) __attribute__((always_inline)) {
            for (index_t at = first; at < end; at += strip) {
              const index_t pairs = std::min(strip, end - at),
                            values = std::clamp<index_t>(k - 2 * at, 0, 2 * pairs);
              for (index_t n = 0; n < left; ++n)
                pack_pairs(path, b.at(2 * at, j + n), values, pairs, split, turned + n * step);
              transpose(turned, step, pairs, left, start + at * width, width);
              if (split)
                transpose(turned + pairs, step, pairs, left, start + (depth + at) * width, width);
            }
          });
          return;
        }
        const From* const zeros = zero_row<From>.data();
        for (index_t i = first; i < end; ++i) {
          for (index_t row = 2 * i; row < 2 * i + 2; ++row)
            if (row + rows_ahead < ks.end)
              prefetch(b.at(row + rows_ahead, columns.begin), columns.size());
          index_t done = columns.begin;
#if defined(__x86_64__)
          if constexpr (std::is_same_v<From, float>)
            if (path >= CpuPath::avx512_bf16 && !split && 2 * i + 1 < k)
              done += pair_rows_avx512_bf16(b.at(2 * i, done), b.at(2 * i + 1, done),
                                            columns.size(), to + i * panel, panel * stored);
#endif
          each_panel([&](index_t j, index_t left, index_t width, bfloat16_pair * start)
                         __attribute__((always_inline)) {
                           if (j < done) return;
                           const From* const x = 2 * i < k ? b.at(2 * i, j) : zeros;
                           const From* const next = 2 * i + 1 < k ? b.at(2 * i + 1, j) : zeros;
                           pair_rows<false>(x, next, left, start + i * width);
                           if (split) pair_rows<true>(x, next, left, start + (depth + i) * width);
                         });
        }
      });
}

/// Rows of a as rows of pairs, `step` apart.                                 a (rows, k)
template <class B, class From>
void pack_rows(const GemmKernel<float, bfloat16_pair, B>& kernel, Strided<From> a, index_t rows,
               index_t k, bfloat16_pair* to, index_t step) {
  const index_t depth = kernel.depth(k);
  const bool split = kernel.split;
  const CpuPath path = kernel.path;
  on_path(
      path, [=]() __attribute__((always_inline)) {
        if (a.column_step == 1) {
          for (index_t n = 0; n < rows; ++n)
            pack_pairs(path, a.at(n, 0), k, depth, split, to + n * step);
          return;
        }
        // Columns of a lie one after the other: 32 values of k of 64 rows at a time.
        alignas(64) bfloat16_pair pairs[2][16 * 64];
        const From* const zeros = zero_row<From>.data();
        for (index_t i = 0; i < depth; i += 16) {
          const index_t few = std::min<index_t>(16, depth - i);
          for (index_t n = 0; n < rows; n += 64) {
            const index_t some = std::min<index_t>(64, rows - n);
            for (index_t l = 0; l < few; ++l) {
              const index_t at = 2 * (i + l);
              const From* const x = at < k ? a.at(n, at) : zeros;
              const From* const next = at + 1 < k ? a.at(n, at + 1) : zeros;
              // Pieces of columns are too short for the processor to foresee the next.
              for (index_t later = at + 32; later < std::min(k, at + 34); ++later)
                prefetch(a.at(n, later), some);
              index_t done = 0;
#if defined(__x86_64__)
              if constexpr (std::is_same_v<From, float>)
                if (path >= CpuPath::avx512_bf16)
                  done = pair_rows_avx512_bf16(x, next, some, pairs[0] + l * 64, 32);
#endif
              pair_rows<false>(x + done, next + done, some - done, pairs[0] + l * 64 + done);
              if (split) pair_rows<true>(x, next, some, pairs[1] + l * 64);
            }
            transpose(pairs[0], 64, some, few, to + n * step + i, step);
            if (split) transpose(pairs[1], 64, some, few, to + n * step + depth + i, step);
          }
        }
      });
}

}  // namespace dflash::detail
