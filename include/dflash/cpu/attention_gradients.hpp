#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/attention_factors.hpp"
#include "dflash/cpu/attention_own.hpp"
#include "dflash/cpu/attention_panels.hpp"
#include "dflash/cpu/attention_parts.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash::detail {

/// What attention_backward reads and adds to.
template <class T>
struct AttentionTensors {
  View<const T, 3> q, dy;
  View<const T, 2> lse, delta;
  KeyValue<const T> kv;
  View<T, 3> dq;
};

/// In slots [slots) score becomes the probability p = 2^(score - lse), dp becomes p (dp - delta);
/// both become zero in the rest of [all).        score, dp (slots, score_row)  lse, delta (lanes)
template <int Bytes, class T>
[[gnu::always_inline]] inline void softmax_backward(Range slots, Range all, T* score, T* dp,
                                                    index_t score_row, const T* lse,
                                                    const T* delta) {
  using P = PanelVectors<T, Bytes>;
  using Register = typename P::Register;
  using Memory = typename P::Memory;
  for (index_t lane = 0; lane < P::lanes; lane += P::V::lanes) {
    const Register base = *(const Memory*)(lse + lane), mean = *(const Memory*)(delta + lane);
    const auto clear = [&](Range some) __attribute__((always_inline)) {
      for (index_t j = some.begin; j < some.end; ++j)
        *(Memory*)(score + j * score_row + lane) = *(Memory*)(dp + j * score_row + lane) =
            Register{};
    };
    clear({all.begin, slots.begin});
    clear({slots.end, all.end});
    for (index_t j = slots.begin; j < slots.end; ++j) {
      Memory& at = *(Memory*)(score + j * score_row + lane);
      Memory& ds = *(Memory*)(dp + j * score_row + lane);
      Register p = at - base;
      power_of_two(p);
      at = p;
      ds = p * (ds - mean);
    }
  }
}

/// Backward of a tile's attention, of each panel of its rows after panel.
template <class T>
class AttentionGradients {
  using Factors = PlainFactors<T>;

 public:
  AttentionGradients(CpuBackend<T>& backend, const AttentionTensors<T>& tensors, double scale,
                     const AttentionPlan& plan)
      : kernel_(backend.gemm_kernel()),
        path_(backend.path()),
        of_(tensors),
        scale_(scale),
        panels_{panel_lanes(kernel_)},
        dim_(tensors.q.shape[2]),
        width_(kernel_.padded(dim_)),
        rows_(panels_.whole(plan.rows())),
        own_(plan, panels_.lanes, Factors::pitch) {
    score_row_ = crowded(rows_ * index_t(sizeof(T))) ? rows_ + panels_.lanes : rows_;
    slots_ = std::max(key_chunk, own_.tile);
    room_size_ = rows_ * (3 * dim_ + 2 * width_ + 2) + panels_.lanes * (dim_ + 2 * own_.panel) +
                 2 * key_chunk * score_row_ + 2 * slots_ * Factors::key_step(dim_);
    room_ = backend.template allocate<T>(room_size_ * backend.threads());
  }

  /// Adds to dq and to `into` what comes of a tile.
  void add(const QueryTile& tile, index_t g, const KeyValue<T>& into, int thread) const {
    const Room room = this->room(thread);
    begin(tile, room);
    const auto add_one = [&](const KeyChunk& chunk) { add_chunk(tile, g, chunk, room, into); };
    for_each_context_chunk(tile, add_one);
    if (own_.small)
      add_small_blocks(tile, g, room, into);
    else
      for_each_own_chunk(tile, add_one);
    end(tile, room);
  }

 private:
  /// What a thread keeps of a tile.
  struct Room {
    T *q, *dy, *dq;       // panels (dim, lanes)
    T *q_rows, *dy_rows;  // (rows, width)
    T *lse, *delta;       // (rows)
    T* rows;              // (lanes, dim)
    T *score, *dp;        // (key_chunk, score_row)
    T *wide, *wide_dp;    // (own slots, lanes)
    T *keys, *values;
  };
  Room room(int thread) const {
    T* next = room_.data() + thread * room_size_;
    const auto take = [&](index_t n) { return std::exchange(next, next + n); };
    Room r;
    r.q = take(rows_ * dim_), r.dy = take(rows_ * dim_), r.dq = take(rows_ * dim_);
    r.score = take(key_chunk * score_row_), r.dp = take(key_chunk * score_row_);
    r.q_rows = take(rows_ * width_), r.dy_rows = take(rows_ * width_);
    r.lse = take(rows_), r.delta = take(rows_);
    r.rows = take(panels_.lanes * dim_);
    r.wide = take(panels_.lanes * own_.panel), r.wide_dp = take(panels_.lanes * own_.panel);
    r.keys = take(slots_ * Factors::key_step(dim_));
    r.values = take(slots_ * Factors::key_step(dim_));
    return r;
  }

  void begin(const QueryTile& tile, const Room& room) const {
    std::fill_n(room.dq, panels_.count(tile) * panels_.lanes * dim_, T(0));
    for (index_t p = 0; p < panels_.count(tile); ++p) {
      const Range rows = panels_.rows(tile, p);
      pack_rows(tile, rows, of_.q, scale_ / natural_log_of_two, dim_, room.rows);
      transpose(room.rows, dim_, dim_, panels_.lanes, room.q + rows.begin * dim_, panels_.lanes);
      pack_rows(tile, rows, of_.q, scale_, width_, room.q_rows + rows.begin * width_);
      T* const dy = room.dy_rows + rows.begin * width_;
      pack_rows(tile, rows, of_.dy, 1, width_, dy);
      transpose(dy, width_, dim_, panels_.lanes, room.dy + rows.begin * dim_, panels_.lanes);
      std::fill_n(room.lse + rows.begin, panels_.lanes, T(0));
      std::fill_n(room.delta + rows.begin, panels_.lanes, T(0));
      tile.for_rows(rows, of_.q.shape[1], [&](index_t i, index_t at) {
        // A row that has seen no key has an lse of -infinity; any finite number serves it.
        const T lse = of_.lse.data[at];
        room.lse[i] = std::isfinite(lse) ? lse * T(1 / natural_log_of_two) : T(0);
        room.delta[i] = of_.delta.data[at];
      });
    }
  }
  /// Rows of a panel, zeros behind them.                                   to (lanes, width)
  void pack_rows(const QueryTile& tile, Range rows, View<const T, 3> x, double scale, index_t width,
                 T* to) const {
    T* const end = to + panels_.lanes * width;
    tile.for_rows(rows, x.shape[1], [&](index_t, index_t at) {
      for (index_t d = 0; d < dim_; ++d) to[d] = x.data[at * dim_ + d] * T(scale);
      std::fill(to + dim_, to + width, T(0));
      to += width;
    });
    std::fill(to, end, T(0));
  }

  void add_chunk(const QueryTile& tile, index_t g, const KeyChunk& chunk, const Room& room,
                 const KeyValue<T>& into) const {
    const auto& k = chunk.own ? of_.kv.k_block : of_.kv.k_context;
    const auto& v = chunk.own ? of_.kv.v_block : of_.kv.v_context;
    const index_t heads = tile.heads.size();
    const Strided<T> keys = Factors::key_rows(k.data + chunk.first * k.stride() + g * dim_,
                                              k.stride(), chunk.slots, dim_, room.keys),
                     values = Factors::key_rows(v.data + chunk.first * v.stride() + g * dim_,
                                                v.stride(), chunk.slots, dim_, room.values);
    bool same = true;
    for (index_t p = chunk.rows.begin / panels_.lanes; p * panels_.lanes < chunk.rows.end; ++p) {
      const Range rows = panels_.rows(tile, p);
      const PanelView<T> view(rows, heads, tile.alike(),
                              [&](index_t u) { return chunk.seen(u, heads); });
      T* const score = room.score + rows.begin;
      T* const dp = room.dp + rows.begin;
      multiply_rows(keys, view.slots, room.q, rows.begin, score, score_row_);
      multiply_rows(values, view.slots, room.dy, rows.begin, dp, score_row_);
      Factors::on_vectors(
          path_, [&](auto bytes) __attribute__((always_inline)) {
            weigh<bytes>(view, chunk.slots, rows.begin, room);
          });
      add_to_dq(keys, view.slots, dp, score_row_, rows.begin, room);
      same = same && view.equal && view.slots.size() == chunk.slots.size();
    }
    const auto& dk = chunk.own ? into.k_block : into.k_context;
    const auto& dv = chunk.own ? into.v_block : into.v_context;
    const index_t to = chunk.first * dk.stride() + g * dim_;
    // Where rows see different keys, a few keys at a time with the rows that see any of them.
    const index_t few = std::max<index_t>(kernel_.rows * 2 / 3, 1);
    Range slots = chunk.slots;
    for (; slots.begin < chunk.slots.end; slots.begin = slots.end) {
      slots.end = same ? chunk.slots.end : std::min(slots.begin + few, chunk.slots.end);
      add_to_keys(slots, same ? chunk.rows : rows_that_see(chunk, slots, heads), room, dk.data + to,
                  dv.data + to, dk.stride());
    }
  }

  /// All rows of a chunk but those before and behind that see none of some slots.
  static Range rows_that_see(const KeyChunk& chunk, Range slots, index_t heads) {
    const auto sees = [&](index_t row) {
      const Range seen = chunk.seen(row / heads, heads);
      return seen.begin < slots.end && seen.end > slots.begin;
    };
    Range rows = chunk.rows;
    while (rows.begin < rows.end && !sees(rows.begin)) rows.begin += heads;
    while (rows.begin < rows.end && !sees(rows.end - heads)) rows.end -= heads;
    return rows;
  }

  void add_small_blocks(const QueryTile& tile, index_t g, const Room& room,
                        const KeyValue<T>& into) const {
    const auto& k = of_.kv.k_block;
    const auto& v = of_.kv.v_block;
    const index_t size = tile.mask->block_size, each = size * tile.heads.size();
    const Range with_keys = blocks_with_keys(tile);
    if (with_keys.size() <= 0) return;
    const index_t start = tile.own[with_keys.begin * size].begin * k.stride() + g * dim_;
    const Range slots{0, with_keys.size() * size};
    const Strided<T> keys = Factors::key_rows(k.data + start, k.stride(), slots, dim_, room.keys),
                     values =
                         Factors::key_rows(v.data + start, v.stride(), slots, dim_, room.values);
    for (index_t p = 0; p < panels_.count(tile); ++p) {
      const Range rows = panels_.rows(tile, p);
      const PanelBlocks<T> of(tile, with_keys, own_.pitch, rows);
      if (of.blocks.size() <= 0) continue;
      const PanelView<T> view(rows, tile.heads.size(), tile.alike(), [&](index_t u) {
        return Range{0, tile.own[u].size()};
      });
      const index_t before = (of.blocks.begin - with_keys.begin) * size;
      const Strided<T> some_keys{keys.at(before, 0), keys.row_step, 1},
          some_values{values.at(before, 0), values.row_step, 1};
      multiply_rows(some_keys, {0, of.slots()}, room.q, rows.begin, room.wide, panels_.lanes);
      multiply_rows(some_values, {0, of.slots()}, room.dy, rows.begin, room.wide_dp, panels_.lanes);
      T* const score = room.score + rows.begin;
      T* const dp = room.dp + rows.begin;
      Factors::on_vectors(
          path_, [&](auto bytes) __attribute__((always_inline)) {
            gather_blocks<bytes>(of, size, room.wide, score, score_row_);
            gather_blocks<bytes>(of, size, room.wide_dp, dp, score_row_);
            weigh<bytes>(view, {0, size}, rows.begin, room);
            spread_blocks<bytes>(of, view.slots, dp, score_row_, room.wide);
          });
      add_to_dq(some_keys, {0, of.slots()}, room.wide, panels_.lanes, rows.begin, room);
    }
    for (index_t b = with_keys.begin; b < with_keys.end; ++b)
      add_to_keys({0, size}, {b * each, (b + 1) * each}, room,
                  into.k_block.data + start + (b - with_keys.begin) * size * k.stride(),
                  into.v_block.data + start + (b - with_keys.begin) * size * k.stride(),
                  into.k_block.stride());
  }

  /// Keys or values times a panel of rows.
  void multiply_rows(const Strided<T>& keys, Range slots, const T* panels, index_t row, T* to,
                     index_t to_row) const {
    if (slots.size() > 0)
      multiply_panel(kernel_, {keys.at(slots.begin, 0), keys.row_step, 1}, slots.size(),
                     panels + row * dim_, panels_.lanes, dim_, to + slots.begin * to_row, to_row,
                     panels_.lanes, false);
  }
  template <int Bytes>
  [[gnu::always_inline]] void weigh(const PanelView<T>& view, Range all, index_t row,
                                    const Room& room) const {
    hide_in_panel<Bytes>(view, room.score + row, score_row_);
    softmax_backward<Bytes>(view.slots, all, room.score + row, room.dp + row, score_row_,
                            room.lse + row, room.delta + row);
  }
  void add_to_dq(const Strided<T>& keys, Range slots, const T* ds, index_t ds_row, index_t row,
                 const Room& room) const {
    if (slots.size() > 0)
      multiply_panel(kernel_, {keys.at(slots.begin, 0), 1, keys.row_step}, dim_,
                     ds + slots.begin * ds_row, ds_row, slots.size(), room.dq + row * dim_,
                     panels_.lanes, panels_.lanes, true);
  }
  void add_to_keys(Range slots, Range rows, const Room& room, T* dk, T* dv, index_t step) const {
    const index_t from = slots.begin * score_row_ + rows.begin, to = slots.begin * step;
    multiply_panel(kernel_, {room.score + from, score_row_, 1}, slots.size(),
                   room.dy_rows + rows.begin * width_, width_, rows.size(), dv + to, step, dim_,
                   true);
    multiply_panel(kernel_, {room.dp + from, score_row_, 1}, slots.size(),
                   room.q_rows + rows.begin * width_, width_, rows.size(), dk + to, step, dim_,
                   true);
  }

  void end(const QueryTile& tile, const Room& room) const {
    for (index_t p = 0; p < panels_.count(tile); ++p) {
      const Range rows = panels_.rows(tile, p);
      transpose(room.dq + rows.begin * dim_, panels_.lanes, panels_.lanes, dim_, room.rows, dim_);
      tile.for_rows(rows, of_.dq.shape[1], [&](index_t i, index_t at) {
        const T* const from = room.rows + (i - rows.begin) * dim_;
        T* const to = of_.dq.data + at * dim_;
        for (index_t d = 0; d < dim_; ++d) to[d] += from[d] * T(scale_);
      });
    }
  }

  GemmKernel<T> kernel_;
  CpuPath path_;
  AttentionTensors<T> of_;
  double scale_;
  TilePanels panels_;
  index_t dim_, width_, rows_;
  OwnSlots own_;
  index_t score_row_, slots_, room_size_;
  mutable CpuBuffer<T> room_;
};

}  // namespace dflash::detail
