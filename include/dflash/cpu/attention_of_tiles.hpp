#pragma once

#include <algorithm>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/attention_factors.hpp"
#include "dflash/cpu/attention_own.hpp"
#include "dflash/cpu/attention_panels.hpp"
#include "dflash/cpu/attention_softmax.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash::detail {

/// Attention of one tile after the other, of each panel after panel.
template <class Factors, class T>
class AttentionOfTiles {
 public:
  AttentionOfTiles(CpuBackend<T>& backend, View<const T, 3> q, const KeyValue<const T>& kv,
                   double scale, AttentionPlan& plan)
      : kernel_(Factors::kernel(backend)),
        path_(backend.path()),
        q_(q),
        kv_(kv),
        scale_(T(scale / natural_log_of_two)),
        plan_(plan),
        panels_{panel_lanes(kernel_)},
        own_(plan, Factors::packs_small_blocks ? panels_.lanes : 0, Factors::pitch) {
    const index_t dim = q.shape[2], rows = panels_.whole(plan.rows()),
                  slots = std::max(key_chunk, own_.tile);
    sums_size_ = rows * (dim + 2) + panels_.lanes * (dim + key_chunk + own_.panel);
    factors_size_ = rows * Factors::depth(dim) +
                    slots * (Factors::key_step(dim) + Factors::value_step(dim)) +
                    panels_.lanes * std::max(key_chunk, own_.panel);
    sums_ = backend.template allocate<T>(sums_size_ * backend.threads());
    factors_ = backend.template allocate<Element>(factors_size_ * backend.threads());
  }

  void run(CpuBackend<T>& backend, View<T, 3> y, View<T, 2> lse) {
    const index_t work = q_.size() * (kv_.k_context.shape[0] + key_chunk);
    backend.parallel_for(plan_.tiles() * plan_.kv_heads(), work, [&](index_t task, int thread) {
      const index_t g = task % plan_.kv_heads();
      // Tiles further back see more keys: they go first, so that all threads end together.
      const QueryTile tile = plan_.tile(plan_.tiles() - 1 - task / plan_.kv_heads(), g, thread);
      const Room room = this->room(thread);
      begin(tile, room);
      if (kernel_.begin != nullptr) kernel_.begin();
      const auto add_one = [&](const KeyChunk& chunk) { add_chunk(tile, g, chunk, room); };
      for_each_context_chunk(tile, add_one);
      if (own_.small)
        add_small_blocks(tile, g, room);
      else
        for_each_own_chunk(tile, add_one);
      if (kernel_.end != nullptr) kernel_.end();
      end(tile, room, y, lse);
    });
  }

 private:
  using Element = typename Factors::Element;

  /// What a thread keeps of a tile.
  struct Room {
    RunningSoftmax<T> run;
    T* y;              // panels (dim, lanes)
    T* rows;           // (lanes, dim)
    T* score;          // (key_chunk, lanes)
    T* wide;           // (own slots, lanes)
    Element* queries;  // panels (dim, lanes)
    Element *keys, *values, *shares;
  };
  Room room(int thread) const {
    const index_t dim = q_.shape[2], rows = panels_.whole(plan_.rows()),
                  slots = std::max(key_chunk, own_.tile);
    T* const sums = sums_.data() + thread * sums_size_;
    Element* const factors = factors_.data() + thread * factors_size_;
    Room r;
    r.run = {sums, sums + rows};
    r.y = sums + 2 * rows;
    r.rows = r.y + rows * dim;
    r.score = r.rows + panels_.lanes * dim;
    r.wide = r.score + panels_.lanes * key_chunk;
    r.queries = factors;
    r.keys = r.queries + rows * Factors::depth(dim);
    r.values = r.keys + slots * Factors::key_step(dim);
    r.shares = r.values + slots * Factors::value_step(dim);
    return r;
  }
  void begin(const QueryTile& tile, const Room& room) const {
    const index_t dim = q_.shape[2];
    room.run.begin(panels_.count(tile) * panels_.lanes);
    std::fill_n(room.y, panels_.count(tile) * panels_.lanes * dim, T(0));
    for (index_t p = 0; p < panels_.count(tile); ++p) {
      const Range rows = panels_.rows(tile, p);
      T* to = room.rows;
      tile.for_rows(rows, q_.shape[1], [&](index_t, index_t at) {
        for (index_t d = 0; d < dim; ++d) *to++ = q_.data[at * dim + d] * scale_;
      });
      std::fill(to, room.rows + panels_.lanes * dim, T(0));
      Factors::pack_queries(room.rows, panels_.lanes, dim, room.keys,
                            room.queries + rows.begin * Factors::depth(dim));
    }
  }

  void add_chunk(const QueryTile& tile, index_t g, const KeyChunk& chunk, const Room& room) const {
    const auto& k = chunk.own ? kv_.k_block : kv_.k_context;
    const auto& v = chunk.own ? kv_.v_block : kv_.v_context;
    const index_t dim = q_.shape[2], heads = tile.heads.size();
    const auto keys = Factors::key_rows(k.data + chunk.first * k.stride() + g * dim, k.stride(),
                                        chunk.slots, dim, room.keys);
    const auto values = Factors::value_columns(v.data + chunk.first * v.stride() + g * dim,
                                               v.stride(), chunk.slots, dim, room.values);
    for (index_t p = chunk.rows.begin / panels_.lanes; p * panels_.lanes < chunk.rows.end; ++p) {
      const Range rows = panels_.rows(tile, p);
      const PanelView<T> view(rows, heads, tile.alike(),
                              [&](index_t u) { return chunk.seen(u, heads); });
      if (view.slots.size() <= 0) continue;
      multiply_keys(keys, view.slots, rows.begin, room, room.score);
      Factors::on_vectors(
          path_, [&](auto bytes) __attribute__((always_inline)) {
            weigh<bytes>(view, rows.begin, room, room.score);
          });
      add_values(values, view.slots, rows.begin, room, room.score);
    }
  }

  void add_small_blocks(const QueryTile& tile, index_t g, const Room& room) const {
    const auto& k = kv_.k_block;
    const auto& v = kv_.v_block;
    const index_t dim = q_.shape[2], size = tile.mask->block_size;
    const Range with_keys = blocks_with_keys(tile);
    if (with_keys.size() <= 0) return;
    const index_t start = tile.own[with_keys.begin * size].begin;
    Strided<Element> keys, values;
    for (index_t b = with_keys.size() - 1; b >= 0; --b) {
      const index_t at = start + b * size, slot = b * own_.pitch;
      keys = Factors::key_rows(k.data + at * k.stride() + g * dim, k.stride(), {0, size}, dim,
                               room.keys + slot * Factors::key_step(dim));
      values =
          Factors::value_columns(v.data + at * v.stride() + g * dim, v.stride(), {0, size}, dim,
                                 room.values + Factors::depth(slot) * Factors::value_step(dim));
    }
    for (index_t p = 0; p < panels_.count(tile); ++p) {
      const Range rows = panels_.rows(tile, p);
      const PanelBlocks<T> of(tile, with_keys, own_.pitch, rows);
      if (of.blocks.size() <= 0) continue;
      const PanelView<T> view(rows, tile.heads.size(), tile.alike(), [&](index_t u) {
        return Range{0, tile.own[u].size()};
      });
      const index_t before = (of.blocks.begin - with_keys.begin) * own_.pitch;
      const Strided<Element> some_keys{keys.at(before, 0), keys.row_step, keys.column_step},
          some_values{values.at(0, Factors::depth(before)), values.row_step, values.column_step};
      multiply_keys(some_keys, {0, of.slots()}, rows.begin, room, room.wide);
      Factors::on_vectors(
          path_, [&](auto bytes) __attribute__((always_inline)) {
            gather_blocks<bytes>(of, size, room.wide, room.score, panels_.lanes);
            weigh<bytes>(view, rows.begin, room, room.score);
            spread_blocks<bytes>(of, view.slots, room.score, panels_.lanes, room.wide);
          });
      add_values(some_values, {0, of.slots()}, rows.begin, room, room.wide);
    }
  }

  void multiply_keys(const Strided<Element>& keys, Range slots, index_t row, const Room& room,
                     T* score) const {
    const index_t depth = Factors::depth(q_.shape[2]);
    multiply_panel(kernel_, {keys.at(slots.begin, 0), keys.row_step, keys.column_step},
                   slots.size(), room.queries + row * depth, panels_.lanes, depth,
                   score + slots.begin * panels_.lanes, panels_.lanes, panels_.lanes, false);
  }
  template <int Bytes>
  [[gnu::always_inline]] void weigh(const PanelView<T>& view, index_t row, const Room& room,
                                    T* score) const {
    const index_t dim = q_.shape[2];
    hide_in_panel<Bytes>(view, score, panels_.lanes);
    softmax_of_panel<Bytes>(view.slots, score, room.run.from(row), room.y + row * dim, dim);
  }
  void add_values(const Strided<Element>& values, Range slots, index_t row, const Room& room,
                  const T* score) const {
    const index_t dim = q_.shape[2], first = Factors::first(slots.begin);
    const Element* const shares = Factors::pack_shares(score, panels_.lanes, slots, room.shares);
    multiply_panel(kernel_, {values.at(0, first), values.row_step, values.column_step}, dim,
                   shares + first * panels_.lanes, panels_.lanes, Factors::depth(slots.end) - first,
                   room.y + row * dim, panels_.lanes, panels_.lanes, true);
  }

  void end(const QueryTile& tile, const Room& room, View<T, 3> y, View<T, 2> lse) const {
    const index_t dim = y.shape[2];
    for (index_t p = 0; p < panels_.count(tile); ++p) {
      const Range rows = panels_.rows(tile, p);
      transpose(room.y + rows.begin * dim, panels_.lanes, panels_.lanes, dim, room.rows, dim);
      tile.for_rows(rows, y.shape[1], [&](index_t i, index_t at) {
        const T* const from = room.rows + (i - rows.begin) * dim;
        const T share = room.run.share(i);
        for (index_t d = 0; d < dim; ++d) y.data[at * dim + d] = from[d] * share;
        lse.data[at] = room.run.log_sum(i);
      });
    }
  }

  typename Factors::Kernel kernel_;
  CpuPath path_;
  View<const T, 3> q_;
  KeyValue<const T> kv_;
  T scale_;
  AttentionPlan& plan_;
  TilePanels panels_;
  OwnSlots own_;
  index_t sums_size_, factors_size_;
  mutable CpuBuffer<T> sums_;
  mutable CpuBuffer<Element> factors_;
};

}  // namespace dflash::detail
