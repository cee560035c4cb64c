#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "dflash/cpu/gemm_kernel.hpp"
#include "dflash/cpu/pack.hpp"
#include "dflash/cpu/pack_bf16.hpp"

namespace dflash::detail {

/// Rows [begin, end) of tile `i` of `tiles` nearly equal ones, of which the first is the largest.
inline Range tile_rows(index_t rows, index_t tiles, index_t i) {
  return {(rows * i + tiles - 1) / tiles, (rows * (i + 1) + tiles - 1) / tiles};
}

/// Copies one column of a tile; with `more` behind it, up to a whole tile's rows of what follows.
template <class T>
[[gnu::always_inline]] inline void copy_tile_column(const T* from, index_t rows, bool more, T* to) {
  using V = Vector<T, 16>;
  constexpr index_t most = 12;
  if (!more || rows < most - 1) return copy_few(from, rows, to);
  typename V::Register r[most / V::lanes];
  for (int i = 0; i < most / V::lanes; ++i)
    r[i] = *(const typename V::Memory*)(from + i * V::lanes);
  for (int i = 0; i < most / V::lanes; ++i) *(typename V::Memory*)(to + i * V::lanes) = r[i];
}

/// a, whose columns lie one after the other, in tiles: element (row, k) of a tile at k * its rows +
/// row.
template <class T>
void pack_tiles(const GemmKernel<T>& kernel, Strided<T> a, index_t rows, index_t k, T* to) {
  const index_t tiles = (rows + kernel.rows - 1) / kernel.rows;
  on_path(
      kernel.path, [=]() __attribute__((always_inline)) {
        for (index_t strip = 0; strip < k; strip += 16) {
          // A piece of a column is too short for the processor to foresee the next.
          for (index_t i = strip + 16; i < std::min(k, strip + 32); ++i)
            for (index_t n = 0; n < rows; n += 64 / index_t(sizeof(T)))
              __builtin_prefetch(a.at(n, i));
          for (index_t t = 0; t < tiles; ++t) {
            const Range r = tile_rows(rows, tiles, t);
            for (index_t i = strip; i < std::min(k, strip + 16); ++i)
              copy_tile_column(a.at(r.begin, i), r.size(), i + 1 < k,
                               to + r.begin * k + i * r.size());
          }
        }
      });
}

/// Some rows of a in the form that tiles read: gives those of a range.
template <class A>
struct RowBlock {
  const A* data;
  index_t row_step, column_step;
  index_t tile_k = 0;  // not 0: tiles of that many columns, each column by column

  Strided<A> operator()(Range r) const {
    if (tile_k != 0) return {data + r.begin * tile_k, 1, r.size()};
    return {data + r.begin * row_step, row_step, column_step};
  }
};

/// Whether and how blocks of the rows of a, which has `rows`, are copied before they are
/// multiplied.
template <class T, class A, class B, class From = T>
class RowCopies;

/// Rows of a matrix distant by a large power of two fall into the same few lines of a cache.
inline bool crowded(index_t row_bytes) { return row_bytes % 2048 == 0; }

template <class T>
class RowCopies<T, T, T, T> {
 public:
  RowCopies(const GemmKernel<T>& kernel, Strided<T> a, index_t rows, index_t k)
      : kernel_(kernel),
        tiled_(a.column_step != 1),
        needed_((tiled_ || rows > 4) &&
                crowds_tiles((tiled_ ? a.column_step : a.row_step) * index_t(sizeof(T)))),
        k_(k),
        step_(tiled_ ? k : k + 64 / index_t(sizeof(T))) {}

  bool needed() const { return needed_; }
  /// Elements in memory of a block of `height` rows.
  index_t size(index_t height) const { return needed_ ? height * step_ : 0; }
  RowBlock<T> make(Strided<T> a, index_t rows, T* copy) const {
    if (!needed_) return {a.data, a.row_step, a.column_step};
    if (tiled_) {
      pack_tiles(kernel_, a, rows, k_, copy);
      return {copy, 1, 1, k_};
    }
    for (index_t n = 0; n < rows; ++n) std::copy_n(a.at(n, 0), k_, copy + n * step_);
    return {copy, step_, 1};
  }

 private:
  /// Kernels of tall tiles take so long over a column that the next can come from farther away.
  bool crowds_tiles(index_t bytes) const {
    return crowded(bytes) && (kernel_.rows < 12 || bytes % 4096 == 0);
  }

  const GemmKernel<T>& kernel_;
  bool tiled_, needed_;
  index_t k_, step_;
};

template <class B, class From>
class RowCopies<float, bfloat16_pair, B, From> {
 public:
  using Kernel = GemmKernel<float, bfloat16_pair, B>;
  // Split factors have their rests behind each row; matrix registers read whole ones, also where
  // there is no row or no k left.
  RowCopies(const Kernel& kernel, Strided<From> a, index_t rows, index_t k)
      : kernel_(kernel),
        needed_(!serves(a) || k % 2 != 0 || kernel.split || kernel.k_step != 1 ||
                (rows > 4 && crowded(a.row_step * index_t(sizeof(From))))),
        k_(k),
        step_(kernel.stored_depth(k) + 16) {}

  bool needed() const { return needed_; }
  index_t size(index_t height) const { return needed_ ? (height + kernel_.rows) * step_ : 0; }
  RowBlock<bfloat16_pair> make(Strided<From> a, index_t rows, bfloat16_pair* copy) const {
    if constexpr (std::is_same_v<From, bfloat16>)
      if (!needed_) return {reinterpret_cast<const bfloat16_pair*>(a.data), a.row_step / 2, 1};
    pack_rows(kernel_, a, rows, k_, copy, step_);
    return {copy, step_, 1};
  }

 private:
  /// Whether what lies there are pairs already.
  static bool serves(Strided<From> a) {
    return std::is_same_v<From, bfloat16> && a.column_step == 1 && a.row_step % 2 == 0 &&
           reinterpret_cast<std::uintptr_t>(a.data) % alignof(bfloat16_pair) == 0;
  }

  const Kernel& kernel_;
  bool needed_;
  index_t k_, step_;
};

/// Floats for panels whose elements hold several values of k, or from rows in bfloat16.
template <class B, class From>
requires(k_per_element<B> > 1 || !std::is_same_v<From, float>)  //
    class RowCopies<float, float, B, From> {
 public:
  RowCopies(const GemmKernel<float, float, B>& kernel, Strided<From> a, index_t rows, index_t k)
      : path_(kernel.path),
        needed_(!std::is_same_v<From, float> || k % each != 0 ||
                (rows > 4 && crowded(a.row_step * index_t(sizeof(float))))),
        k_(k),
        step_((k + each - 1) / each * each + 16) {}

  bool needed() const { return needed_; }
  index_t size(index_t height) const { return needed_ ? height * step_ : 0; }
  RowBlock<float> make(Strided<From> a, index_t rows, float* copy) const {
    if constexpr (std::is_same_v<From, float>)
      if (!needed_) return {a.data, a.row_step, each};
    on_path(
        path_, [ =, k = k_, step = step_ ]() __attribute__((always_inline)) {
          if (a.column_step == 1)
            for (index_t n = 0; n < rows; ++n) copy_few(a.at(n, 0), k, copy + n * step);
          else
            for (index_t i = 0; i < k; ++i)
              for (index_t n = 0; n < rows; ++n) copy[n * step + i] = float(*a.at(n, i));
          for (index_t n = 0; n < rows; ++n) std::fill_n(copy + n * step + k, each - 1, 0.f);
        });
    return {copy, step_, each};
  }

 private:
  static constexpr index_t each = k_per_element<B>;

  CpuPath path_;
  bool needed_;
  index_t k_, step_;
};

}  // namespace dflash::detail
