#pragma once

#include <algorithm>
#include <utility>

#include "dflash/core/config.hpp"

namespace dflash::detail {

/// Length of the chains that a sum over k is made of: each is a chain of multiply-adds that starts
/// at zero, and the chains are added in order. Long sums stay accurate, and tiles of every shape
/// give the same bits.
inline constexpr index_t gemm_chain = 512;

/// One tile of c = a b or c += a b: a few rows of a times one panel of b, in registers.
template <class T>
struct GemmTile {
  const T* a;  // element (row, k) at a[row * a_row + k * a_k]
  index_t a_row, a_k;
  const T* panel;  // element (k, column) at panel[k * width + column], zero beyond `columns`
  index_t k;
  T* c;
  index_t c_row;
  index_t columns;
  bool add;
};

/// A finished row of a tile whose panel is wider than c.
template <class T>
void store_narrow(const GemmTile<T>& t, int row, const T* sum) {
  T* c = t.c + row * t.c_row;
  for (index_t i = 0; i < t.columns; ++i) c[i] = t.add ? c[i] + sum[i] : sum[i];
}

/// The compiler's own vectors.
template <class T, int Bytes>
struct Vector {
  typedef T Register __attribute__((vector_size(Bytes)));
  typedef T Memory __attribute__((vector_size(Bytes), aligned(alignof(T)), may_alias));
  static constexpr int lanes = Bytes / sizeof(T);
};

// The tiles below are one text: what differs is the target attribute, which no template can set.

template <class T, int Vectors, class Rows>
struct PortableTile;

template <class T, int Vectors, int... R>
struct PortableTile<T, Vectors, std::integer_sequence<int, R...>> {
  static void run(const GemmTile<T>& t) {
    using V = Vector<T, 16>;
    using Memory = typename V::Memory;
    constexpr int rows = sizeof...(R), width = Vectors * V::lanes, second = width - V::lanes;
    alignas(64) T total[rows][width];
    typename V::Register s[rows], u[rows];
    const T* panel = t.panel;
    const T* a[] = {t.a, t.a + 3 * t.a_row, t.a + 6 * t.a_row, t.a + 9 * t.a_row};
    index_t k = 0;
    do {
      ((s[R] = u[R] = typename V::Register{}), ...);
      for (const index_t end = std::min(t.k, k + gemm_chain); k < end; ++k) {
        const auto b = *(const Memory*)panel, d = *(const Memory*)(panel + second);
        if constexpr (Vectors == 2) {
          ((s[R] = a[R / 3][R % 3 * t.a_row] * b + s[R],
            u[R] = a[R / 3][R % 3 * t.a_row] * d + u[R]),
           ...);
        } else {
          ((s[R] = a[R / 3][R % 3 * t.a_row] * b + s[R]), ...);
        }
        panel += width;
        for (const T*& p : a) p += t.a_k;
      }
      if (k > gemm_chain) {
        ((s[R] += *(const Memory*)total[R]), ...);
        if constexpr (Vectors == 2) ((u[R] += *(const Memory*)&total[R][second]), ...);
      }
      if (k < t.k || t.columns < width) {
        ((*(Memory*)total[R] = s[R]), ...);
        if constexpr (Vectors == 2) ((*(Memory*)&total[R][second] = u[R]), ...);
      }
    } while (k < t.k);
    if (t.columns < width) {
      (store_narrow(t, R, total[R]), ...);
      return;
    }
    T* c[] = {(t.c + R * t.c_row)...};
    if (t.add) {
      ((s[R] += *(const Memory*)c[R]), ...);
      if constexpr (Vectors == 2) ((u[R] += *(const Memory*)(c[R] + second)), ...);
    }
    ((*(Memory*)c[R] = s[R]), ...);
    if constexpr (Vectors == 2) ((*(Memory*)(c[R] + second) = u[R]), ...);
  }
};

#if defined(__x86_64__)

template <class T, int Vectors, class Rows>
struct Avx2Tile;

template <class T, int Vectors, int... R>
struct Avx2Tile<T, Vectors, std::integer_sequence<int, R...>> {
  [[gnu::target("avx2,fma")]] static void run(const GemmTile<T>& t) {
    using V = Vector<T, 32>;
    using Memory = typename V::Memory;
    constexpr int rows = sizeof...(R), width = Vectors * V::lanes, second = width - V::lanes;
    alignas(64) T total[rows][width];
    typename V::Register s[rows], u[rows];
    const T* panel = t.panel;
    const T* a[] = {t.a, t.a + 3 * t.a_row, t.a + 6 * t.a_row, t.a + 9 * t.a_row};
    index_t k = 0;
    do {
      ((s[R] = u[R] = typename V::Register{}), ...);
      for (const index_t end = std::min(t.k, k + gemm_chain); k < end; ++k) {
        const auto b = *(const Memory*)panel, d = *(const Memory*)(panel + second);
        if constexpr (Vectors == 2) {
          ((s[R] = a[R / 3][R % 3 * t.a_row] * b + s[R],
            u[R] = a[R / 3][R % 3 * t.a_row] * d + u[R]),
           ...);
        } else {
          ((s[R] = a[R / 3][R % 3 * t.a_row] * b + s[R]), ...);
        }
        panel += width;
        for (const T*& p : a) p += t.a_k;
      }
      if (k > gemm_chain) {
        ((s[R] += *(const Memory*)total[R]), ...);
        if constexpr (Vectors == 2) ((u[R] += *(const Memory*)&total[R][second]), ...);
      }
      if (k < t.k || t.columns < width) {
        ((*(Memory*)total[R] = s[R]), ...);
        if constexpr (Vectors == 2) ((*(Memory*)&total[R][second] = u[R]), ...);
      }
    } while (k < t.k);
    if (t.columns < width) {
      (store_narrow(t, R, total[R]), ...);
      return;
    }
    T* c[] = {(t.c + R * t.c_row)...};
    if (t.add) {
      ((s[R] += *(const Memory*)c[R]), ...);
      if constexpr (Vectors == 2) ((u[R] += *(const Memory*)(c[R] + second)), ...);
    }
    ((*(Memory*)c[R] = s[R]), ...);
    if constexpr (Vectors == 2) ((*(Memory*)(c[R] + second) = u[R]), ...);
  }
};

template <class T, int Vectors, class Rows>
struct Avx512Tile;

template <class T, int Vectors, int... R>
struct Avx512Tile<T, Vectors, std::integer_sequence<int, R...>> {
  [[gnu::target("avx512f")]] static void run(const GemmTile<T>& t) {
    using V = Vector<T, 64>;
    using Memory = typename V::Memory;
    constexpr int rows = sizeof...(R), width = Vectors * V::lanes, second = width - V::lanes;
    alignas(64) T total[rows][width];
    typename V::Register s[rows], u[rows];
    const T* panel = t.panel;
    const T* a[] = {t.a, t.a + 3 * t.a_row, t.a + 6 * t.a_row, t.a + 9 * t.a_row};
    index_t k = 0;
    do {
      ((s[R] = u[R] = typename V::Register{}), ...);
      for (const index_t end = std::min(t.k, k + gemm_chain); k < end; ++k) {
        const auto b = *(const Memory*)panel, d = *(const Memory*)(panel + second);
        if constexpr (Vectors == 2) {
          ((s[R] = a[R / 3][R % 3 * t.a_row] * b + s[R],
            u[R] = a[R / 3][R % 3 * t.a_row] * d + u[R]),
           ...);
        } else {
          ((s[R] = a[R / 3][R % 3 * t.a_row] * b + s[R]), ...);
        }
        panel += width;
        for (const T*& p : a) p += t.a_k;
      }
      if (k > gemm_chain) {
        ((s[R] += *(const Memory*)total[R]), ...);
        if constexpr (Vectors == 2) ((u[R] += *(const Memory*)&total[R][second]), ...);
      }
      if (k < t.k || t.columns < width) {
        ((*(Memory*)total[R] = s[R]), ...);
        if constexpr (Vectors == 2) ((*(Memory*)&total[R][second] = u[R]), ...);
      }
    } while (k < t.k);
    if (t.columns < width) {
      (store_narrow(t, R, total[R]), ...);
      return;
    }
    T* c[] = {(t.c + R * t.c_row)...};
    if (t.add) {
      ((s[R] += *(const Memory*)c[R]), ...);
      if constexpr (Vectors == 2) ((u[R] += *(const Memory*)(c[R] + second)), ...);
    }
    ((*(Memory*)c[R] = s[R]), ...);
    if constexpr (Vectors == 2) ((*(Memory*)(c[R] + second) = u[R]), ...);
  }
};

#endif

}  // namespace dflash::detail
