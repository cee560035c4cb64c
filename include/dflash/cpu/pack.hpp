#pragma once

#include <algorithm>
#include <type_traits>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/config.hpp"
#include "dflash/cpu/gemm_tile.hpp"

namespace dflash::detail {

/// A matrix in either order: element (row, column) at data[row * row_step + column * column_step],
/// one of the steps being 1.
template <class T>
struct Strided {
  const T* data;
  index_t row_step, column_step;

  const T* at(index_t row, index_t column) const {
    return data + row * row_step + column * column_step;
  }
};
template <class T>
Strided(const T*, index_t, index_t) -> Strided<T>;

template <class Register>
void transpose(Register (&r)[4]) {
  const auto a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5),
             b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7),
             c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5),
             d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
template <class Register>
void transpose(Register (&r)[2]) {
  const auto a = __builtin_shufflevector(r[0], r[1], 0, 2);
  r[1] = __builtin_shufflevector(r[0], r[1], 1, 3);
  r[0] = a;
}

/// to[i * to_step + j] = from[j * from_step + i]                       i < rows, j < columns
template <class T>
void transpose(const T* from, index_t from_step, index_t rows, index_t columns, T* to,
               index_t to_step) {
  using V = Vector<T, 16>;
  using Memory = typename V::Memory;
  const index_t whole_rows = rows / V::lanes * V::lanes,
                whole_columns = columns / V::lanes * V::lanes;
  // In strips whose result stays in the first cache level.
  for (index_t strip = 0; strip < rows; strip += 64) {
    const index_t end = std::min(rows, strip + 64), whole = std::min(whole_rows, strip + 64);
    // Pieces of many rows are too short for the processor to foresee the next.
    for (index_t j = 0; j < columns && end < rows; ++j)
      for (index_t i = end; i < std::min(rows, end + 64); i += 64 / index_t(sizeof(T)))
        __builtin_prefetch(from + j * from_step + i);
    for (index_t j = 0; j < whole_columns; j += V::lanes) {
      index_t i = strip;
      for (; i < whole; i += V::lanes) {
        typename V::Register r[V::lanes];
        for (int l = 0; l < V::lanes; ++l) r[l] = *(const Memory*)(from + (j + l) * from_step + i);
        transpose(r);
        for (int l = 0; l < V::lanes; ++l) *(Memory*)(to + (i + l) * to_step + j) = r[l];
      }
      for (; i < end; ++i)
        for (int l = 0; l < V::lanes; ++l) to[i * to_step + j + l] = from[(j + l) * from_step + i];
    }
    for (index_t j = whole_columns; j < columns; ++j)
      for (index_t i = strip; i < end; ++i) to[i * to_step + j] = from[j * from_step + i];
  }
}

/// Copies n elements, most often few.
template <class T>
void copy_few(const T* from, index_t n, T* to) {
  using V = Vector<T, 16>;
  index_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes)
    *(typename V::Memory*)(to + i) = *(const typename V::Memory*)(from + i);
  for (; i < n; ++i) to[i] = from[i];
}
[[gnu::always_inline]] inline void copy_few(const bfloat16* from, index_t n, float* to) {
  for (index_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

/// Copies a row of a panel, in its type.
template <class From, class T>
[[gnu::always_inline]] inline void copy_row(const From* from, index_t n, T* to) {
  constexpr int whole = 128 / sizeof(T);
  if (n == whole)
    for (int i = 0; i < whole; ++i) to[i] = static_cast<T>(from[i]);
  else
    copy_few(from, n, to);
}

/// Fetches n elements that are wanted soon.
template <class T>
[[gnu::always_inline]] inline void prefetch(const T* x, index_t n) {
  for (index_t i = 0; i < n; i += 64 / index_t(sizeof(T))) __builtin_prefetch(x + i);
}

/// How many rows ahead of their use pieces of rows are fetched.
inline constexpr index_t rows_ahead = 4;

/// Rows [ks) of b, columns [columns), as panels of `depth` rows, `width` wide, the last maybe
/// `narrow` wide, filled up with zeros. What is not in T lies row after row.
template <class From, class T>
[[gnu::always_inline]] inline void pack_panels(Strided<From> b, Range ks, index_t depth,
                                               Range columns, index_t width, index_t narrow,
                                               T* to) {
  const auto each_panel = [&](auto&& f) __attribute__((always_inline)) {
    for (index_t j = columns.begin; j < columns.end; j += width) {
      const index_t left = std::min(columns.end - j, width), wide = left > narrow ? width : narrow;
      f(j, left, wide, to + (j - columns.begin) * depth + ks.begin * wide);
    }
  };
  if (std::is_same_v<From, T> && b.row_step == 1) {
    each_panel([&](index_t j, index_t left, index_t wide, T * panel)
                   __attribute__((always_inline)) {
                     if constexpr (std::is_same_v<From, T>)
                       transpose(b.at(ks.begin, j), b.column_step, ks.size(), left, panel, wide);
                   });
  } else {
    for (index_t i = ks.begin; i < ks.end; ++i) {
      if (i + rows_ahead < ks.end) prefetch(b.at(i + rows_ahead, columns.begin), columns.size());
      each_panel([&](index_t j, index_t left, index_t wide, T * panel) __attribute__((
          always_inline)) { copy_row(b.at(i, j), left, panel + (i - ks.begin) * wide); });
    }
  }
  each_panel([&](index_t, index_t left, index_t wide, T * panel) __attribute__((always_inline)) {
    for (index_t i = 0; left < wide && i < ks.size(); ++i)
      std::fill_n(panel + i * wide + left, wide - left, T(0));
  });
}

}  // namespace dflash::detail
