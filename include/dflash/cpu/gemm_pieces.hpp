#pragma once

#include <algorithm>

#include "dflash/cpu/gemm_kernel.hpp"
#include "dflash/cpu/gemm_rows.hpp"

namespace dflash::detail {

/// Elements of a in a block of rows, a share of the second cache level.
inline constexpr index_t row_block_size = 1 << 16;

/// Tiles of rows in a block, at most, for panels of so many elements a column.
template <class T, class A, class B>
index_t block_tiles(const GemmKernel<T, A, B>& kernel, index_t depth) {
  return std::max<index_t>(row_block_size / std::max<index_t>(depth, 1) / kernel.rows, 4);
}

/// Into how many blocks of whole tiles rows are cut.
template <class T, class A, class B>
index_t row_blocks(const GemmKernel<T, A, B>& kernel, index_t rows, index_t depth) {
  const index_t most = block_tiles(kernel, depth);
  return (kernel.row_tiles(rows) + most - 1) / most;
}

/// Most rows that a block of up to so many rows has: of fewer rows a block can be larger.
template <class T, class A, class B>
index_t row_block(const GemmKernel<T, A, B>& kernel, index_t rows, index_t depth) {
  return std::min(rows, block_tiles(kernel, depth) * kernel.rows);
}

/// f(rows in the form that tiles read, which) for the blocks of `rows` rows of a; `copy` has room
/// for one.
template <class T, class A, class B, class From, class F>
void each_row_block(const GemmKernel<T, A, B>& kernel, const RowCopies<T, A, B, From>& copies,
                    index_t depth, Strided<From> a, index_t rows, A* copy, F&& f) {
  const index_t blocks = row_blocks(kernel, rows, depth);
  for (index_t i = 0; i < blocks; ++i) {
    const Range r = tile_rows(rows, blocks, i);
    f(copies.make({a.at(r.begin, 0), a.row_step, a.column_step}, r.size(), copy), r);
  }
}

/// How c is cut into pieces that threads compute: parts of whole tiles of rows times parts of whole
/// panels of columns.
class GemmPieces {
 public:
  /// `copies`: the rows of every piece are copied; `packs`: its columns are packed.
  template <class T, class A, class B>
  GemmPieces(const GemmKernel<T, A, B>& kernel, index_t rows, index_t columns, index_t k,
             index_t threads, bool copies, bool packs)
      : rows_(rows),
        columns_(columns),
        tiles_(kernel.row_tiles(rows)),
        panel_(kernel.panel_columns()),
        panels_(kernel.panels(columns)) {
    const index_t most =
        std::clamp<index_t>(std::max<index_t>(rows, 8) * columns * k >> 18, 1, 4 * threads);
    index_t best = -1;
    for (index_t row_parts = 1; threads > 1 && row_parts <= std::min(tiles_, most); ++row_parts)
      for (index_t parts = 1; parts <= std::min(panels_, most / row_parts); ++parts) {
        // What the thread does that has most to do, in multiply-adds: to copy an element takes as
        // long as a vector of them. Something is added for waiting for the last piece.
        const index_t each = (panels_ + parts - 1) / parts,
                      high = (tiles_ + row_parts - 1) / row_parts * kernel.rows,
                      wide = each * panel_,
                      copied = ((copies ? high : 0) + (packs ? wide : 0)) * k_per_element<B>,
                      turns = (row_parts * ((panels_ + each - 1) / each) + threads - 1) / threads,
                      cost = (16 * turns + 1) * (high * wide + copied * kernel.lanes);
        if (best >= 0 && cost >= best) continue;
        best = cost;
        row_parts_ = row_parts;
        each_ = each;
      }
  }

  index_t size() const { return row_parts_ * column_parts(); }
  Range rows_of(index_t i) const {
    const Range some = tile_rows(tiles_, row_parts_, i % row_parts_);
    return {rows_ * some.begin / tiles_, rows_ * some.end / tiles_};
  }
  Range columns_of(index_t i) const {
    const index_t begin = i / row_parts_ * width();
    return {begin, std::min(columns_, begin + width())};
  }
  /// Rows of the largest part.
  index_t height() const {
    const index_t most = (tiles_ + row_parts_ - 1) / row_parts_;
    return std::min(rows_, (rows_ * most + tiles_ - 1) / tiles_ + 1);
  }
  /// Columns of the largest part, filled up to whole panels.
  index_t width() const { return each_ * panel_; }

 private:
  index_t column_parts() const { return (panels_ + each_ - 1) / each_; }

  index_t rows_, columns_, tiles_, panel_, panels_;
  index_t row_parts_ = 1, each_ = panels_;  // panels of a part
};

}  // namespace dflash::detail
