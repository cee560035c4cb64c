#pragma once

#include <algorithm>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/gemm_kernel.hpp"
#include "dflash/cpu/pack.hpp"

namespace dflash::detail {

/// Elements of b in a block of columns (a share of the third cache level), of a in a block of rows
/// and of b in a group of panels (shares of the second).
inline constexpr index_t column_block_size = 1 << 20, row_block_size = 1 << 17,
                         panel_group_size = 1 << 16;

/// Rows [begin, end) of tile `i` of `tiles` nearly equal ones.
inline Range tile_rows(index_t rows, index_t tiles, index_t i) {
  return {rows * i / tiles, rows * (i + 1) / tiles};
}

/// b (k, columns) in panels, one after the other; `panel_k` rows of each lie in memory.
template <class T>
struct Panels {
  const T* data;
  index_t panel_k, columns;
};

/// All columns of b in panels.                                             to (padded(columns), k)
template <class T>
void pack_panels(const GemmKernel<T>& kernel, Strided<T> b, index_t k, Range columns, T* to) {
  pack_panels(b, k, columns, kernel.panel_columns(), kernel.lanes, to);
}

/// c = a b or c += a b, on this thread, with rows [ks) of b. `a` gives the rows of a range.
///                                                             a (rows, ks)  c (rows, columns)
template <class T, class RowsOfA>
void multiply(const GemmKernel<T>& kernel, RowsOfA a, index_t rows, Panels<T> b, Range ks, T* c,
              index_t c_row, bool add) {
  const index_t tiles = (rows + kernel.rows - 1) / kernel.rows;
  const index_t panel = kernel.panel_columns(),
                group = std::max<index_t>(panel_group_size / (ks.size() + 1) / panel, 1) * panel;
  for (index_t g = 0; g < b.columns; g += group)
    for (index_t i = 0; i < tiles; ++i) {
      const Range r = tile_rows(rows, tiles, i);
      const Strided<T> tile = a(r);
      for (index_t j = g; j < std::min(b.columns, g + group); j += panel) {
        const index_t columns = std::min(b.columns - j, panel);
        kernel.run(r.size(), {tile.data, tile.row_step, tile.column_step,
                              b.data + j * b.panel_k + ks.begin * kernel.width(columns), ks.size(),
                              c + r.begin * c_row + j, c_row, columns, add});
      }
    }
}

/// a, whose columns lie one after the other, in tiles: element (row, k) of a tile at k * its rows +
/// row.
template <class T>
void pack_tiles(const GemmKernel<T>& kernel, Strided<T> a, index_t rows, index_t k, T* to) {
  const index_t tiles = (rows + kernel.rows - 1) / kernel.rows;
  for (index_t strip = 0; strip < k; strip += 16) {
    // A piece of a column is too short for the processor to foresee the next.
    for (index_t i = strip + 16; i < std::min(k, strip + 32); ++i)
      for (index_t n = 0; n < rows; n += 64 / index_t(sizeof(T))) __builtin_prefetch(a.at(n, i));
    for (index_t t = 0; t < tiles; ++t) {
      const Range r = tile_rows(rows, tiles, t);
      for (index_t i = strip; i < std::min(k, strip + 16); ++i)
        copy_few(a.at(r.begin, i), r.size(), to + r.begin * k + i * r.size());
    }
  }
}

/// Longest sum in one piece; longer ones are added to c piece by piece.
inline constexpr index_t gemm_slice = 16 * gemm_chain;

/// Columns of b whose panels are used together.
template <class T>
index_t column_block(const GemmKernel<T>& kernel, index_t k) {
  const index_t panels = column_block_size / (std::max<index_t>(k, 1) * kernel.panel_columns());
  return std::max<index_t>(panels, 1) * kernel.panel_columns();
}

/// c = a b or c += a b with rows [ks) of b, a and c in blocks of rows, b in blocks of columns.
template <class T>
void multiply_blocks(CpuBackend<T>& backend, Strided<T> a, Panels<T> b, Range ks, View<T, 2> c,
                     index_t c_row, bool add) {
  if (c.size() == 0) return;
  const GemmKernel<T>& kernel = backend.gemm_kernel();
  const index_t rows = c.shape[0], columns = c.shape[1], k = ks.size();
  const index_t by_cache = row_block_size / std::max<index_t>(k, 1) / kernel.rows * kernel.rows,
                by_threads = (rows + backend.threads() - 1) / backend.threads(),
                height = std::max(std::min(by_cache, by_threads), std::min(rows, 4 * kernel.rows)),
                row_blocks = (rows + height - 1) / height;
  const index_t at_most = column_block(kernel, k), share = columns * row_blocks / backend.threads(),
                width = std::max(
                    std::min(at_most, share / kernel.panel_columns() * kernel.panel_columns()),
                    kernel.panel_columns()),
                column_blocks = (columns + width - 1) / width;
  // Rows whose distance is a large power of two fall into the same few lines of the first level.
  const bool tiled = a.column_step != 1,
             crowded = !tiled && rows > 4 && a.row_step * sizeof(T) % 2048 == 0;
  const index_t step = tiled ? k : k + 64 / index_t(sizeof(T)), size = height * step;
  auto scratch = backend.template allocate<T>(tiled || crowded ? backend.threads() * size : 0);
  backend.parallel_for(row_blocks * column_blocks, rows * columns * k, [&](index_t i, int thread) {
    const Range block = tile_rows(rows, row_blocks, i % row_blocks);
    const index_t j = i / row_blocks * width;
    const Strided<T> from{a.at(block.begin, ks.begin), a.row_step, a.column_step};
    T* const copy = scratch.data() + thread * size;
    if (tiled) pack_tiles(kernel, from, block.size(), k, copy);
    if (crowded)
      for (index_t n = 0; n < block.size(); ++n) std::copy_n(from.at(n, 0), k, copy + n * step);
    multiply(
        kernel,
        [&](Range r) {
          if (tiled) return Strided<T>{copy + r.begin * k, 1, r.size()};
          if (crowded) return Strided<T>{copy + r.begin * step, step, 1};
          return Strided<T>{from.at(r.begin, 0), from.row_step, 1};
        },
        block.size(), Panels<T>{b.data + j * b.panel_k, b.panel_k, std::min(width, columns - j)},
        ks, c.data + block.begin * c_row + j, c_row, add);
  });
}

/// c = a b or c += a b.                                    a (M, k)  b (k, N)  c (M, N)
///
/// The bits of a row of c depend on that row of a and on b alone: every element is the sum of
/// chains of multiply-adds over k (gemm_chain) in increasing order, whatever the other rows, the
/// blocks, the threads. With `add` the sum is finished first and then added once (once per
/// gemm_slice).
template <class T>
void gemm(CpuBackend<T>& backend, Strided<T> a, Strided<T> b, index_t k, View<T, 2> c, bool add) {
  const index_t columns = c.shape[1];
  if (c.size() == 0) return;
  const GemmKernel<T>& kernel = backend.gemm_kernel();
  const index_t longest = std::min(k, gemm_slice), block = column_block(kernel, longest);
  auto packed = backend.template allocate<T>(kernel.padded(std::min(block, columns)) * longest);
  for (index_t j = 0; j < columns; j += block) {
    const index_t wide = std::min(block, columns - j);
    Range ks{0, longest};
    do {
      const Strided<T> from{b.at(ks.begin, j), b.row_step, b.column_step};
      const index_t several = 8 * kernel.panel_columns();
      backend.parallel_for((wide + several - 1) / several, wide * ks.size(), [&](index_t i, int) {
        const index_t first = i * several;
        pack_panels(kernel, from, ks.size(), {first, std::min(wide, first + several)},
                    packed.data() + first * ks.size());
      });
      const View<T, 2> part{c.data + j, {c.shape[0], wide}};
      const Strided<T> a_part{a.at(0, ks.begin), a.row_step, a.column_step};
      multiply_blocks(backend, a_part, Panels<T>{packed.data(), ks.size(), wide},
                      Range{0, ks.size()}, part, columns, add || ks.begin > 0);
      ks = {ks.end, std::min(k, ks.end + gemm_slice)};
    } while (ks.begin < k);
  }
}

}  // namespace dflash::detail
