#pragma once

#include <algorithm>
#include <functional>
#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/fetch.hpp"
#include "dflash/cpu/gemm_kernel.hpp"
#include "dflash/cpu/gemm_pieces.hpp"
#include "dflash/cpu/gemm_rows.hpp"
#include "dflash/cpu/pack.hpp"
#include "dflash/cpu/pack_bf16.hpp"

namespace dflash::detail {

/// Elements of b that a thread packs before it goes on to other columns (a share of the third cache
/// level), and of those in a group of panels (a share of the second).
inline constexpr index_t column_block_size = 1 << 20, panel_group_size = 1 << 16;

/// Columns of panels that hold so many elements together, at least one panel's.
template <class T, class A, class B>
index_t whole_panels(const GemmKernel<T, A, B>& kernel, index_t depth, index_t elements) {
  const index_t panel = kernel.panel_columns();
  return std::max<index_t>(elements / std::max<index_t>(depth, 1) / panel, 1) * panel;
}

/// b (k, columns) in panels, one after the other; `panel_k` rows of each lie in memory. Or, with
/// a row_step, whole panels side by side in rows of a matrix.
template <class B>
struct Panels {
  const B* data;
  index_t panel_k, columns;
  index_t row_step = 0;
  bool far = false;  // not packed just before, so that they may be far away

  /// Row k of the panel, `width` wide, that begins with column j.
  const B* at(index_t k, index_t j, index_t width) const {
    return row_step != 0 ? data + k * row_step + j : data + j * panel_k + k * width;
  }
  /// Columns [j, j + width), or what there is of them.
  Panels part(index_t j, index_t width) const {
    return {at(0, j, 0), panel_k, std::min(width, columns - j), row_step, far};
  }
};

/// Rows [ks) of b, which has k, in panels of columns [columns).     to (padded(columns), depth(k))
template <class T, class From>
void pack_panels(const GemmKernel<T>& kernel, Strided<From> b, Range ks, index_t k, Range columns,
                 T* to) {
  on_path(
      kernel.path,
      [ =, width = kernel.panel_columns(), narrow = kernel.lanes ]()
          __attribute__((always_inline)) { pack_panels(b, ks, k, columns, width, narrow, to); });
}

struct Nothing {
  void operator()() const {}
};

/// c = a b or c += a b, on this thread, with rows [ks) of b, in elements. `a` gives the rows of a
/// range. `between` is called after every tile.                a (rows, ks)  c (rows, columns)
template <class T, class A, class B, class RowsOfA, class Between = Nothing>
void multiply(const GemmKernel<T, A, B>& kernel, RowsOfA a, index_t rows, Panels<B> b, Range ks,
              T* c, index_t c_row, bool add, Between between = {}) {
  const index_t tiles = kernel.row_tiles(rows);
  const index_t panel = kernel.panel_columns(),
                group = whole_panels(kernel, ks.size(), panel_group_size);
  if (kernel.begin != nullptr) kernel.begin();
  for (index_t g = 0; g < b.columns; g += group)
    for (index_t i = 0; i < tiles; ++i) {
      const Range r = tile_rows(rows, tiles, i);
      const Strided<A> tile = a(r);
      for (index_t j = g; j < std::min(b.columns, g + group); j += panel) {
        const index_t columns = std::min(b.columns - j, panel), width = kernel.width(columns);
        kernel.run({tile.data, tile.row_step, tile.column_step, b.at(ks.begin, j, width),
                    b.row_step != 0 ? b.row_step : width, ks.size(), c + r.begin * c_row + j, c_row,
                    r.size(), columns, add},
                   ks.size(), b.panel_k / 2 * width, b.far && i == 0);
        between();
      }
    }
  if (kernel.end != nullptr) kernel.end();
}

/// Longest slice of k that is multiplied at once; a longer product is added to c slice by slice.
inline constexpr index_t gemm_slice = 4 * gemm_chain;
/// Where sums are made of chains the cut does not matter: so long that factors which are packed
/// stay in the second cache level.
inline constexpr index_t short_slice = 2 * gemm_chain;

/// f(slice) for the pieces of k, of nearly equal length, at most `longest` whole chains, that are
/// summed one by one, at least one.
template <class F>
void for_slices(index_t k, index_t longest, F&& f) {
  const index_t chains = (k + gemm_chain - 1) / gemm_chain,
                slices = std::max<index_t>((k + longest - 1) / longest, 1),
                each = (chains + slices - 1) / slices * gemm_chain;
  Range ks{0, std::min(k, each)};
  do {
    f(ks);
    ks = {ks.end, std::min(k, ks.end + each)};
  } while (ks.begin < k);
}

/// c = a b or c += a b on one thread, with memory of its own: copies of rows of a, and b packed,
/// both in the kernel's elements, whatever they were.
template <class T, class A, class B, class FromA, class FromB>
class PieceProduct {
 public:
  PieceProduct(const GemmKernel<T, A, B>& kernel, Strided<FromA> a, Strided<FromB> b, index_t rows,
               index_t k)
      : kernel_(kernel),
        copies_(kernel, a, rows, k),
        k_(k),
        depth_(kernel.depth(k)),
        packs_(!std::is_same_v<FromB, B> || b.column_step != 1 ||
               strays(b.row_step * index_t(sizeof(FromB)), rows)) {}

  /// Whether the rows of a are copied, and whether rows of b serve as they are, but for what is
  /// less than a panel.
  bool copies() const { return copies_.needed(); }
  bool packs() const { return packs_; }
  /// Elements of the memory for a piece.
  index_t copy_size(index_t rows) const { return copies_.size(row_block(kernel_, rows, depth_)); }
  index_t packed_size(index_t columns) const {
    const index_t most =
        packs_ ? std::min(block(), kernel_.padded(columns)) : kernel_.panel_columns();
    return most * kernel_.stored_depth(k_);
  }

  ///                                                 a (c's rows, k)  b (k, c's columns)
  void operator()(Strided<FromA> a, Strided<FromB> b, View<T, 2> c, index_t c_row, bool add,
                  A* copy, B* packed) const {
    const index_t columns = c.shape[1], panel = kernel_.panel_columns();
    index_t j = 0;
    if constexpr (std::is_same_v<FromB, B>)
      if (j = packs_ ? 0 : columns / panel * panel; j > 0)
        each_row_block(
            kernel_, copies_, depth_, a, c.shape[0], copy, [&](RowBlock<A> from, Range r) {
              multiply(kernel_, from, r.size(), Panels<B>{b.data, 0, j, b.row_step, true},
                       {0, depth_}, c.data + r.begin * c_row, c_row, add);
            });
    for (; j < columns; j += block()) {
      const View<T, 2> some{c.data + j, {c.shape[0], std::min(columns - j, block())}};
      multiply_packed(a, {b.at(0, j), b.row_step, b.column_step}, some, c_row, add, copy, packed);
    }
  }

 private:
  /// Whether panels in rows of b are slow to read: such as are far apart, or cut lines of the
  /// cache.
  static bool strays(index_t row_bytes, index_t rows) {
    constexpr index_t far = 6144, line = 64, many_rows = 48;
    return crowded(row_bytes) || (rows >= many_rows && (row_bytes > far || row_bytes % line != 0));
  }
  index_t block() const {
    return whole_panels(kernel_, kernel_.stored_depth(k_), column_block_size);
  }

  /// The first block of rows packs b group by group: each is multiplied while it is in the cache,
  /// and meanwhile the next one's columns come there.
  void multiply_packed(Strided<FromA> a, Strided<FromB> b, View<T, 2> c, index_t c_row, bool add,
                       A* copy, B* packed) const {
    const index_t columns = c.shape[1], stored = kernel_.stored_depth(k_),
                  each = whole_panels(kernel_, depth_, panel_group_size);
    Panels<B> panels{packed, stored, columns};
    each_row_block(kernel_, copies_, depth_, a, c.shape[0], copy, [&](RowBlock<A> from, Range r) {
      T* const to = c.data + r.begin * c_row;
      panels.far = r.begin > 0;
      if (panels.far) return multiply(kernel_, from, r.size(), panels, {0, depth_}, to, c_row, add);
      for (index_t j = 0; j < columns; j += each) {
        const Range now{j, std::min(columns, j + each)},
            next{now.end, std::min(columns, now.end + each)};
        pack_panels(kernel_, b, {0, k_}, k_, now, packed + j * stored);
        const index_t calls = kernel_.row_tiles(r.size()) * kernel_.panels(now.size());
        const FromB* const later = b.at(0, next.begin);
        Fetch fetch = b.row_step == 1 ? Fetch(later, next.size(), b.column_step, k_, calls)
                                      : Fetch(later, k_, b.row_step, next.size(), calls);
        multiply(kernel_, from, r.size(), panels.part(j, each), {0, depth_}, to + j, c_row, add,
                 std::ref(fetch));
      }
    });
  }

  const GemmKernel<T, A, B>& kernel_;
  RowCopies<T, A, B, FromA> copies_;
  index_t k_, depth_;
  bool packs_;
};

/// c = a b or c += a b.                                    a (M, k)  b (k, N)  c (M, N)
///
/// The bits of a row of c depend on that row of a and on b alone: every element is the sum of
/// chains of multiply-adds over k (gemm_chain) in increasing order, whatever the other rows, the
/// pieces, the threads. With `add` the chains are added to c one after the other. Sums of kernels
/// without chains go on from c. Those that split their factors make several products of every slice
/// (gemm_slice).
template <class T, class A, class B, class FromA, class FromB>
void gemm(CpuBackend<T>& backend, const GemmKernel<T, A, B>& kernel, Strided<FromA> a,
          Strided<FromB> b, index_t k, View<T, 2> c, bool add) {
  if (c.size() == 0) return;
  const index_t rows = c.shape[0], columns = c.shape[1];
  // f(range of k, its product)
  const auto each_slice = [&](auto&& f) {
    for_slices(k, kernel.cuts_freely() ? short_slice : gemm_slice, [&](Range ks) {
      f(ks, PieceProduct<T, A, B, FromA, FromB>(kernel, a, b, rows, ks.size()));
    });
  };
  bool copies = false, packs = false;
  each_slice([&](Range, const auto& product) {
    copies |= product.copies();
    packs |= product.packs();
  });
  const GemmPieces pieces(kernel, rows, columns, k, backend.threads(), copies, packs);
  index_t copy = 0, packed = 0;
  each_slice([&](Range, const auto& product) {
    copy = std::max(copy, product.copy_size(pieces.height()));
    packed = std::max(packed, product.packed_size(pieces.width()));
  });
  auto rows_memory = backend.template allocate<A>(backend.threads() * copy);
  auto columns_memory = backend.template allocate<B>(backend.threads() * packed);
  // Of few rows the work is in reading b.
  const index_t work = std::max<index_t>(rows, 8) * columns * k;
  backend.parallel_for(pieces.size(), work, [&](index_t i, int thread) {
    const Range r = pieces.rows_of(i), some = pieces.columns_of(i);
    each_slice([&](Range ks, const auto& product) {
      product({a.at(r.begin, ks.begin), a.row_step, a.column_step},
              {b.at(ks.begin, some.begin), b.row_step, b.column_step},
              {c.data + r.begin * columns + some.begin, {r.size(), some.size()}}, columns,
              add || ks.begin > 0, rows_memory.data() + thread * copy,
              columns_memory.data() + thread * packed);
    });
  });
}

}  // namespace dflash::detail
