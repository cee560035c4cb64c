#pragma once

#include <algorithm>
#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/gemm_kernel.hpp"
#include "dflash/cpu/gemm_rows.hpp"
#include "dflash/cpu/pack.hpp"
#include "dflash/cpu/pack_bf16.hpp"

namespace dflash::detail {

/// Elements of b in a block of columns (a share of the third cache level), of a in a block of rows
/// and of b in a group of panels (shares of the second).
inline constexpr index_t column_block_size = 1 << 20, row_block_size = 1 << 17,
                         panel_group_size = 1 << 16;

/// b (k, columns) in panels, one after the other; `panel_k` rows of each lie in memory. Or, with
/// a row_step, whole panels side by side in rows of a matrix.
template <class B>
struct Panels {
  const B* data;
  index_t panel_k, columns;
  index_t row_step = 0;

  /// Row k of the panel, `width` wide, that begins with column j.
  const B* at(index_t k, index_t j, index_t width) const {
    return row_step != 0 ? data + k * row_step + j : data + j * panel_k + k * width;
  }
  /// Columns [j, j + width), or what there is of them.
  Panels part(index_t j, index_t width) const {
    return {at(0, j, 0), panel_k, std::min(width, columns - j), row_step};
  }
};

/// Rows [ks) of b, which has k, in panels of columns [columns).     to (padded(columns), depth(k))
template <class T>
void pack_panels(const GemmKernel<T>& kernel, Strided<T> b, Range ks, index_t k, Range columns,
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
                group = std::max<index_t>(panel_group_size / (ks.size() + 1) / panel, 1) * panel;
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
                   ks.size(), b.panel_k / 2 * width);
        between();
      }
    }
  if (kernel.end != nullptr) kernel.end();
}

/// Longest sum in one piece, in values of k; longer ones are added to c piece by piece.
inline constexpr index_t gemm_slice = 16 * gemm_chain;

/// Columns of b whose panels, of that many elements each, are used together.
template <class T, class A, class B>
index_t column_block(const GemmKernel<T, A, B>& kernel, index_t depth) {
  const index_t panels = column_block_size / (std::max<index_t>(depth, 1) * kernel.panel_columns());
  return std::max<index_t>(panels, 1) * kernel.panel_columns();
}

/// How c is cut into pieces that threads compute: blocks of whole tiles of rows times blocks of
/// whole panels of columns.
struct GemmPieces {
  index_t tiles, row_blocks, width, column_blocks;

  template <class T, class A, class B>
  GemmPieces(const GemmKernel<T, A, B>& kernel, index_t rows, index_t columns, index_t depth,
             int threads) {
    const index_t panels = kernel.panels(columns),
                  in_cache = std::max<index_t>(
                      row_block_size / std::max<index_t>(depth, 1) / kernel.rows, 4);
    tiles = kernel.row_tiles(rows);
    row_blocks = (tiles + in_cache - 1) / in_cache;
    // Several pieces for each thread even out what else the processor does. Blocks of rows are cut
    // rather than columns, as rows may have to be copied for every block of columns.
    const index_t wanted =
        threads == 1 ? 1
                     : std::clamp<index_t>(std::max<index_t>(rows, 8) * columns * depth >> 18, 1,
                                           4 * threads);
    if (wanted > row_blocks) row_blocks = std::clamp((tiles + 3) / 4, row_blocks, wanted);
    if (row_blocks > threads)
      row_blocks = std::min((row_blocks + threads - 1) / threads * threads, tiles);
    const index_t most = column_block(kernel, depth) / kernel.panel_columns(),
                  parts = std::clamp<index_t>(wanted / row_blocks, 1, panels),
                  each = std::min(most, (panels + parts - 1) / parts);
    width = each * kernel.panel_columns();
    column_blocks = (panels + each - 1) / each;
  }
  index_t size() const { return row_blocks * column_blocks; }
  Range block(index_t rows, index_t i) const {
    const Range some = tile_rows(tiles, row_blocks, i);
    return {rows * some.begin / tiles, rows * some.end / tiles};
  }
  /// Rows of the largest block.
  index_t height(index_t rows) const {
    const index_t most = (tiles + row_blocks - 1) / row_blocks;
    return std::min(rows, (rows * most + tiles - 1) / tiles + 1);
  }
};

/// c = a b or c += a b, with columns [ks) of a and the rows of b from the element `first` on.
template <class T, class A, class B>
void multiply_blocks(CpuBackend<T>& backend, const GemmKernel<T, A, B>& kernel, Strided<T> a,
                     Panels<B> b, Range ks, View<T, 2> c, index_t c_row, bool add) {
  if (c.size() == 0) return;
  const index_t rows = c.shape[0], columns = c.shape[1], k = ks.size(), depth = kernel.depth(k),
                first = ks.begin / k_per_element<B>;
  const GemmPieces pieces(kernel, rows, columns, depth, backend.threads());
  const RowCopies<T, A, B> copies(kernel, a, pieces.height(rows), k);
  auto scratch = backend.template allocate<A>(backend.threads() * copies.size());
  // Of few rows the work is in reading b.
  const index_t work = std::max<index_t>(rows, 8) * columns * k;
  backend.parallel_for(pieces.size(), work, [&](index_t i, int thread) {
    const Range block = pieces.block(rows, i % pieces.row_blocks);
    const index_t j = i / pieces.row_blocks * pieces.width;
    const auto from = copies.make({a.at(block.begin, ks.begin), a.row_step, a.column_step},
                                  block.size(), scratch.data() + thread * copies.size());
    multiply(kernel, from, block.size(), b.part(j, pieces.width), Range{first, first + depth},
             c.data + block.begin * c_row + j, c_row, add);
  });
}

/// f(slice) for the pieces of k that are summed one by one, at least one.
template <class F>
void for_slices(index_t k, F&& f) {
  Range ks{0, std::min(k, gemm_slice)};
  do {
    f(ks);
    ks = {ks.end, std::min(k, ks.end + gemm_slice)};
  } while (ks.begin < k);
}

/// All of b in panels: pieces of whole rows or columns, whichever lie together in memory.
///                                                               b (k, columns)
template <class T, class A, class B>
void pack_block(CpuBackend<T>& backend, const GemmKernel<T, A, B>& kernel, Strided<T> b, index_t k,
                index_t columns, B* to) {
  const bool by_columns = b.row_step == 1;
  const index_t each = 64, n = by_columns ? columns : k;
  static_assert(each % (16 * k_per_element<B>) == 0);  // whole steps of every kernel
  backend.parallel_for((n + each - 1) / each, columns * k, [&](index_t i, int) {
    const Range some{i * each, std::min(n, (i + 1) * each)};
    if (by_columns)
      pack_panels(kernel, b, {0, k}, k, some, to + some.begin * kernel.stored_depth(k));
    else
      pack_panels(kernel, b, some, k, {0, columns}, to);
  });
}

/// gemm with b packed.
template <class T, class A, class B>
void gemm_packed(CpuBackend<T>& backend, const GemmKernel<T, A, B>& kernel, Strided<T> a,
                 Strided<T> b, index_t k, View<T, 2> c, index_t c_row, bool add) {
  const index_t columns = c.shape[1], longest = std::min(k, gemm_slice),
                block = column_block(kernel, kernel.stored_depth(longest));
  auto packed = backend.template allocate<B>(kernel.padded(std::min(block, columns)) *
                                             kernel.stored_depth(longest));
  for (index_t j = 0; j < columns; j += block) {
    const index_t wide = std::min(block, columns - j);
    const View<T, 2> part{c.data + j, {c.shape[0], wide}};
    for_slices(k, [&](Range ks) {
      const Strided<T> from{b.at(ks.begin, j), b.row_step, b.column_step};
      pack_block(backend, kernel, from, ks.size(), wide, packed.data());
      const Strided<T> a_part{a.at(0, ks.begin), a.row_step, a.column_step};
      multiply_blocks(backend, kernel, a_part,
                      Panels<B>{packed.data(), kernel.stored_depth(ks.size()), wide},
                      Range{0, ks.size()}, part, c_row, add || ks.begin > 0);
    });
  }
}

/// c = a b or c += a b.                                    a (M, k)  b (k, N)  c (M, N)
///
/// The bits of a row of c depend on that row of a and on b alone: every element is the sum of
/// chains of multiply-adds over k (gemm_chain) in increasing order, whatever the other rows, the
/// blocks, the threads. With `add` the sum is finished first and then added once (once per
/// gemm_slice, and once per product of a kernel that splits its factors).
template <class T, class A, class B>
void gemm(CpuBackend<T>& backend, const GemmKernel<T, A, B>& kernel, Strided<T> a, Strided<T> b,
          index_t k, View<T, 2> c, bool add) {
  const index_t rows = c.shape[0], columns = c.shape[1];
  if (c.size() == 0) return;
  index_t whole = 0;
  if constexpr (std::is_same_v<T, B>) {
    // Rows of b serve as they are, but for what is less than a panel.
    if (b.column_step == 1 && b.row_step >= columns &&
        close_together(b.row_step * index_t(sizeof(T))))
      whole = columns / kernel.panel_columns() * kernel.panel_columns();
    if (whole > 0)
      for_slices(k, [&](Range ks) {
        multiply_blocks(backend, kernel, a, Panels<B>{b.data, 0, whole, b.row_step}, ks,
                        View<T, 2>{c.data, {rows, whole}}, columns, add || ks.begin > 0);
      });
  }
  if (whole < columns)
    gemm_packed(backend, kernel, a, Strided<T>{b.at(0, whole), b.row_step, b.column_step}, k,
                View<T, 2>{c.data + whole, {rows, columns - whole}}, columns, add);
}

}  // namespace dflash::detail
