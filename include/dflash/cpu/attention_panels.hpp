#pragma once

#include <algorithm>
#include <limits>

#include "dflash/cpu/attention_softmax.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/gemm_kernel.hpp"
#include "dflash/cpu/pack.hpp"
#include "dflash/cpu/vector_math.hpp"

/// The rows of a tile as columns, a few side by side in a panel. Keys and values are then the left
/// factors, which are read where they lie, and the softmax goes down the columns, lane by lane.
namespace dflash::detail {

/// A panel in the path's vectors: twelve registers hold the sums of a tile of one of the widest,
/// of the others it takes two.
template <class T, int Bytes>
struct PanelVectors {
  using V = Vector<T, Bytes>;
  using Register = typename V::Register;
  using Memory = typename V::Memory;
  static constexpr int count = Bytes == 64 ? 1 : 2;
  static constexpr index_t lanes = count * V::lanes;
};

inline constexpr index_t most_lanes = 16;

/// Rows of a panel.
template <class T, class A, class B>
index_t panel_lanes(const GemmKernel<T, A, B>& kernel) {
  return kernel.path >= CpuPath::avx512 ? kernel.lanes : kernel.panel_columns();
}

/// The rows of a tile in panels.
struct TilePanels {
  index_t lanes;

  index_t count(const QueryTile& tile) const { return whole(tile.rows()) / lanes; }
  Range rows(const QueryTile& tile, index_t p) const {
    return {p * lanes, std::min((p + 1) * lanes, tile.rows())};
  }
  /// `rows` filled up to whole panels.
  index_t whole(index_t rows) const { return (rows + lanes - 1) / lanes * lanes; }
};

/// What the rows of a panel see of a chunk of keys.
template <class T>
struct PanelView {
  using Whole = typename LanesOf<T>::Bits;
  Range slots{key_chunk, 0};  // that some row sees
  bool equal = true;          // every row sees all of these
  alignas(64) Whole first[most_lanes], last[most_lanes];

  /// Rows [rows) of a tile, of which query row u sees slots visible(u), as do all others of the
  /// same `alike` rows.
  template <class F>
  PanelView(Range rows, index_t heads, index_t alike, F visible) {
    const index_t first_row = rows.begin / heads, each = alike * heads,
                  start = first_row - first_row % alike;
    Range within{0, key_chunk};  // that every row sees
    for (index_t u = start; u * heads < rows.end; u += alike) {
      const Range some = visible(u);
      within = {std::max(within.begin, some.begin), std::min(within.end, some.end)};
      if (some.begin < some.end)
        slots = {std::min(slots.begin, some.begin), std::max(slots.end, some.end)};
    }
    if (slots.begin >= slots.end) slots = {0, 0};
    equal = slots.begin >= within.begin && slots.end <= within.end;
    if (equal || slots.size() == 0) return;
    std::fill_n(first, most_lanes, Whole(slots.begin));
    std::fill_n(last, most_lanes, Whole(slots.end));
    for (index_t u = start; u * heads < rows.end; u += alike) {
      const Range some = visible(u), lanes{std::max(u * heads - rows.begin, index_t(0)),
                                           std::min(u * heads + each, rows.end) - rows.begin};
      std::fill(first + lanes.begin, first + lanes.end, Whole(some.begin));
      std::fill(last + lanes.begin, last + lanes.end, Whole(some.end));
    }
  }
};

/// c = a b or c += a b on this thread, each sum one chain per gemm_chain, if the kernel has chains.
///                                                       a (rows, k)  b (k, columns)
template <class T, class A, class B>
void multiply_panel(const GemmKernel<T, A, B>& kernel, Strided<A> a, index_t rows, const B* b,
                    index_t b_row, index_t k, T* c, index_t c_row, index_t columns, bool add) {
  const index_t most = kernel.rows, few = most * 5 / 3;
  for (index_t i = 0; i < rows;) {
    // Tiles of few rows would wait for their sums.
    const index_t left = rows - i,
                  n = left <= most ? left
                      : left < few ? (left + 1) / 2
                                   : most,
                  wide = n * 3 <= most * 2 ? 2 : 1;
    for (index_t j = 0; j < columns;) {
      const index_t width =
          std::min(columns - j, std::max(wide * kernel.lanes, panel_lanes(kernel)));
      kernel.tiles[2 * (n - 1) + (width > kernel.lanes)]({a.at(i, 0), a.row_step, a.column_step,
                                                          b + j, b_row, k, c + i * c_row + j, c_row,
                                                          n, width, add});
      j += width;
    }
    i += n;
  }
}

/// -infinity where a row does not see the slot.                   score (slots, score_row)
template <int Bytes, class T>
[[gnu::always_inline]] inline void hide_in_panel(const PanelView<T>& view, T* score,
                                                 index_t score_row) {
  using P = PanelVectors<T, Bytes>;
  using Register = typename P::Register;
  using Memory = typename P::Memory;
  using Bits = typename LanesOf<Register>::Bits;
  if (view.equal) return;
  for (index_t lane = 0; lane < P::lanes; lane += P::V::lanes) {
    const Bits first = *(const Bits*)(view.first + lane), last = *(const Bits*)(view.last + lane);
    const Bits infinity = (Bits)(Register{} - std::numeric_limits<T>::infinity());
    Bits slot = Bits{} + typename LanesOf<T>::Bits(view.slots.begin);
    for (index_t j = view.slots.begin; j < view.slots.end; ++j, slot += 1) {
      // Signs, as compilers take a conjunction of comparisons of the widest vectors apart.
      const Bits seen = (~(slot - first) & (slot - last)) >> (8 * int(sizeof(T)) - 1);
      Memory& s = *(Memory*)(score + j * score_row + lane);
      s = (Register)((seen & (Bits)Register(s)) | (~seen & infinity));
    }
  }
}

/// softmax_step of a panel, whose rows are columns.          score (slots, lanes)  y (dim, lanes)
template <int Bytes, class T>
[[gnu::always_inline]] inline void softmax_of_panel(Range slots, T* score, RunningSoftmax<T> run,
                                                    T* y, index_t dim) {
  using P = PanelVectors<T, Bytes>;
  using Register = typename P::Register;
  using Memory = typename P::Memory;
  const Register lowest = Register{} + std::numeric_limits<T>::lowest();
  for (int v = 0; v < P::count; ++v) {
    const index_t lane = v * P::V::lanes;
    T* const column = score + lane;
    const Register old_top = *(const Memory*)(run.top + lane);
    Register some[4] = {old_top, old_top, old_top, old_top};
    index_t j = slots.begin;
    for (; j + 4 <= slots.end; j += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Register s = *(const Memory*)(column + (j + i) * P::lanes);
        some[i] = some[i] < s ? s : some[i];
      }
    for (; j < slots.end; ++j) {
      const Register s = *(const Memory*)(column + j * P::lanes);
      some[0] = some[0] < s ? s : some[0];
    }
    some[0] = some[0] < some[1] ? some[1] : some[0];
    some[2] = some[2] < some[3] ? some[3] : some[2];
    const Register new_top = some[0] < some[2] ? some[2] : some[0],
                   // See softmax_step.
        top = new_top < lowest ? lowest : new_top;
    Register shrink = old_top - top;
    power_of_two(shrink);
    // In the order of softmax_step: sums of every sixteenth slot, these pairwise.
    const auto add_every_16th = [&](index_t l, Register & sum) __attribute__((always_inline)) {
      index_t j = slots.begin / 16 * 16 + l;
      if (j < slots.begin) j += 16;
      sum = Register{};
      for (; j < slots.end; j += 16) {
        Memory& at = *(Memory*)(column + j * P::lanes);
        Register p = at - top;
        power_of_two(p);
        at = p;
        sum += p;
      }
    };
    Register quarter[4];
    for (index_t l = 0; l < 4; ++l) {
      Register a, b, c, d;
      add_every_16th(l, a);
      add_every_16th(l + 8, b);
      add_every_16th(l + 4, c);
      add_every_16th(l + 12, d);
      quarter[l] = (a + b) + (c + d);
    }
    const Register all = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
    Memory& sum = *(Memory*)(run.sum + lane);
    sum = sum * shrink + all;
    *(Memory*)(run.top + lane) = new_top;
    for (index_t d = 0; d < dim; ++d) {
      Memory& at = *(Memory*)(y + d * P::lanes + lane);
      at = at * shrink;
    }
  }
}

}  // namespace dflash::detail
