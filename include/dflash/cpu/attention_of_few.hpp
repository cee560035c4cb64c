#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/attention_factors.hpp"
#include "dflash/cpu/attention_softmax.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash::detail {

/// Attention of tiles of a few rows, as decoding has them: packing keys and values for the tiles of
/// gemm would take longer than the products. Piece by piece, which is a chunk of keys and a head:
/// first all scores, then the values that they weigh, then the sums of these. Threads share a
/// tile's pieces. The same multiply-adds in the same order as for many rows, so the same bits.
template <class Factors, class T>
class AttentionOfFew {
 public:
  AttentionOfFew(CpuBackend<T>& backend, View<const T, 3> q, const KeyValue<const T>& kv,
                 double scale, AttentionPlan& plan)
      : path_(backend.path()),
        q_(q),
        kv_(kv),
        scale_(T(scale / natural_log_of_two)),
        plan_(plan),
        rows_(plan.rows()),
        parts_(plan.tiles() < 4 * backend.threads() ? backend.threads() : 1) {
    const index_t dim = q.shape[2];
    first_ = backend.template allocate<index_t>(plan.tiles() + 1);
    first_.data()[0] = 0;
    for (index_t t = 0; t < plan.tiles(); ++t) {
      index_t chunks = 0;
      for_each_chunk(plan.tile(t, 0, 0), [&](const KeyChunk&) { ++chunks; });
      first_.data()[t + 1] = first_.data()[t] + chunks * plan.kv_heads();
    }
    pieces_ = backend.template allocate<T>(first_.data()[plan.tiles()] * piece_size());
    values_size_ = rows_ * std::max(dim, plan.kv_heads());
    elements_size_ = (rows_ + key_chunk) * (dim + key_chunk + 16);
    values_ = backend.template allocate<T>(values_size_ * backend.threads());
    elements_ = backend.template allocate<Element>(elements_size_ * backend.threads());
  }

  void run(CpuBackend<T>& backend, View<T, 3> y, View<T, 2> lse) {
    // The work is in turning and reading the keys.
    const index_t tiles = plan_.tiles(), heads = plan_.kv_heads(),
                  work = few_rows * q_.size() * (kv_.k_context.shape[0] + key_chunk);
    if (heads == 0) return;
    backend.parallel_for(tiles * parts_, work, [&](index_t task, int thread) {
      find_scores(tiles - 1 - task / parts_, task % parts_, thread);
    });
    backend.parallel_for(tiles * parts_, work, [&](index_t task, int thread) {
      weigh_values(tiles - 1 - task / parts_, task % parts_, thread);
    });
    backend.parallel_for(
        tiles * heads, first_.data()[tiles] * piece_size(),
        [&](index_t i, int thread) { add_up(i / heads, i % heads, thread, y, lse); });
  }

 private:
  using Element = typename Factors::Element;

  /// What rows have of a chunk and a head.
  struct Piece {
    T* score;  // (rows, key_chunk)
    T* value;  // (sums, rows, dim) of what 2^(score - top) weighs
    ChunkSoftmax<T> rows;
  };
  static constexpr index_t sums_of_piece = key_chunk / Factors::slots_of_sum;
  index_t piece_size() const { return rows_ * (key_chunk + sums_of_piece * q_.shape[2] + 4); }
  /// Which sums of a piece its chunk's slots belong to.
  static Range sums_of(const KeyChunk& chunk) {
    return {chunk.slots.begin / Factors::slots_of_sum,
            (chunk.slots.end + Factors::slots_of_sum - 1) / Factors::slots_of_sum};
  }
  Piece piece(index_t i) {
    T* const score = pieces_.data() + i * piece_size();
    T* const value = score + rows_ * key_chunk;
    T* const each = value + sums_of_piece * rows_ * q_.shape[2];
    return {score, value, {each, each + rows_, each + 2 * rows_, each + 3 * rows_}};
  }
  /// The pieces of a part of a tile: chunk by chunk, as their heads lie side by side in memory.
  Range pieces_of(index_t t, index_t part) const {
    const index_t begin = first_.data()[t], count = first_.data()[t + 1] - begin;
    return {begin + count * part / parts_, begin + count * (part + 1) / parts_};
  }
  /// f(piece's number, head, its tile, chunk) for the pieces of a tile.
  template <class F>
  void for_pieces(index_t t, int thread, F&& f) {
    const QueryTile first = plan_.tile(t, 0, thread);
    index_t i = first_.data()[t];
    for_each_chunk(first, [&](KeyChunk chunk) {
      const Range queries{chunk.rows.begin / first.heads.size(),
                          chunk.rows.end / first.heads.size()};
      for (index_t g = 0; g < plan_.kv_heads(); ++g) {
        const QueryTile tile = plan_.tile(t, g, thread);
        chunk.rows = {queries.begin * tile.heads.size(), queries.end * tile.heads.size()};
        f(i++, g, tile, chunk);
      }
    });
  }
  /// Reads a chunk's keys or values of all heads in the order in which they lie in memory: that the
  /// processor foresees, but not what is read of each head, which takes several times as long.
  static void fetch(View<const T, 3> x, const KeyChunk& chunk) {
    if (x.shape[1] == 1) return;
    const T* const begin = x.data + (chunk.first + chunk.slots.begin) * x.stride();
    for (index_t i = 0; i < chunk.slots.size() * x.stride(); i += 64 / index_t(sizeof(T)))
      (void)*(const volatile T*)(begin + i);
  }

  void find_scores(index_t t, index_t part, int thread) {
    const Range some = pieces_of(t, part);
    for_pieces(t, thread, [&](index_t i, index_t g, const QueryTile& tile, const KeyChunk& chunk) {
      if (i < some.begin || i >= some.end) return;
      const index_t dim = q_.shape[2];
      T* const scaled = values_.data() + thread * values_size_;
      for (index_t r = chunk.rows.begin; r < chunk.rows.end; ++r) {
        const T* const from = q_.data + tile.source(r, q_.shape[1]) * dim;
        for (index_t d = 0; d < dim; ++d) scaled[r * dim + d] = from[d] * scale_;
      }
      Element* const turned = elements_.data() + thread * elements_size_;
      const Element* const queries = Factors::left(path_, scaled, tile.rows(), dim, dim,
                                                   turned + key_chunk * Factors::depth(dim));
      const View<const T, 3> k = chunk.own ? kv_.k_block : kv_.k_context;
      if (g == 0 || i == some.begin) fetch(k, chunk);
      const Piece to = piece(i);
      multiply_keys(queries, k.data + g * dim, k.stride(), chunk, turned, to.score);
      find_largest(path_, chunk, tile.heads.size(), to.score, to.rows.largest);
    });
  }

  void multiply_keys(const Element* queries, const T* keys, index_t step, const KeyChunk& chunk,
                     Element* turned, T* score) const {
    const index_t dim = q_.shape[2], depth = Factors::depth(dim);
    Factors::sum_few(
        path_, [ =, &chunk ](auto bytes) __attribute__((always_inline)) {
          using Step = typename Factors::template Step<bytes>;
          constexpr index_t lanes = Step::V::lanes;
          const index_t first = chunk.rows.begin, begin = chunk.slots.begin / lanes * lanes,
                        end = (chunk.slots.end + lanes - 1) / lanes * lanes;
          Factors::template turn_keys<bytes>(keys + chunk.first * step, step, chunk.slots, dim,
                                             turned);
          few_products<Step>(queries + first * depth, depth, chunk.rows.size(), depth,
                             turned + begin, key_chunk, end - begin,
                             score + first * key_chunk + begin, key_chunk);
        });
  }

  void weigh_values(index_t t, index_t part, int thread) {
    const Range some = pieces_of(t, part);
    T* const seen = values_.data() + thread * values_size_;  // the rows' tops so far, of all heads
    std::fill_n(seen, plan_.kv_heads() * rows_, -std::numeric_limits<T>::infinity());
    for_pieces(t, thread, [&](index_t i, index_t g, const QueryTile&, const KeyChunk& chunk) {
      if (i >= some.end) return;
      const Piece to = piece(i);
      T* const top = seen + g * rows_;
      if (i >= some.begin) {
        const index_t dim = q_.shape[2], first = chunk.rows.begin;
        const View<const T, 3> v = chunk.own ? kv_.v_block : kv_.v_context;
        softmax_step(path_, chunk, top, to.score, to.rows);
        if (g == 0 || i == some.begin) fetch(v, chunk);
        multiply_values(to.score + first * key_chunk, v.data + g * dim, v.stride(), chunk,
                        elements_.data() + thread * elements_size_, to.value + first * dim);
      }
      for (index_t r = chunk.rows.begin; r < chunk.rows.end; ++r)
        top[r] = std::max(top[r], to.rows.largest[r]);
    });
  }

  void multiply_values(const T* score, const T* values, index_t step, const KeyChunk& chunk,
                       Element* scratch, T* sum) const {
    const index_t dim = q_.shape[2], pairs = Factors::depth(key_chunk),
                  first = Factors::first(chunk.slots.begin);
    const Element* const shares =
        Factors::left(path_, score, chunk.rows.size(), chunk.slots.end, key_chunk, scratch);
    Element* const room = scratch + rows_ * pairs + 16;
    Factors::sum_few(
        path_, [ =, this, &chunk ](auto bytes) __attribute__((always_inline)) {
          using Step = typename Factors::template Step<bytes>;
          index_t row_step = step;
          const Element* const rows =
              Factors::value_rows(values + chunk.first * step, row_step, chunk.slots, dim, room);
          for (index_t s = sums_of(chunk).begin; s < sums_of(chunk).end; ++s) {
            const index_t begin = std::max(first, Factors::first(s * Factors::slots_of_sum)),
                          end = Factors::depth(
                              std::min(chunk.slots.end, (s + 1) * Factors::slots_of_sum));
            few_products<Step>(shares + begin, pairs, chunk.rows.size(), end - begin,
                               rows + (begin - first) * row_step, row_step, dim,
                               sum + s * rows_ * dim, dim);
          }
        });
  }

  void add_up(index_t t, index_t g, int thread, View<T, 3> y, View<T, 2> lse) {
    const index_t dim = q_.shape[2], all_heads = q_.shape[1];
    const QueryTile tile = plan_.tile(t, g, thread);
    T tops[few_rows], sums[few_rows];
    const RunningSoftmax<T> seen{tops, sums};
    seen.begin(tile.rows());
    tile.for_rows({0, tile.rows()}, all_heads,
                  [&](index_t, index_t at) { std::fill_n(y.data + at * dim, dim, T(0)); });
    index_t i = first_.data()[t] + g;
    for_each_chunk(tile, [&](const KeyChunk& chunk) {
      const Piece from = piece(i);
      i += plan_.kv_heads();
      add_chunk(path_, chunk.rows, from.rows, seen);
      tile.for_rows(chunk.rows, all_heads, [&](index_t r, index_t at) {
        T* const to = y.data + at * dim;
        // One after the other: a product and a sum at once would round once.
        for (index_t d = 0; d < dim; ++d) to[d] *= from.rows.shrink[r];
        Factors::sum_few(
            path_, [&](auto) __attribute__((always_inline)) {
              for (index_t s = sums_of(chunk).begin; s < sums_of(chunk).end; ++s) {
                const T* const value = from.value + (s * rows_ + r) * dim;
                for (index_t d = 0; d < dim; ++d) to[d] += value[d];
              }
            });
      });
    });
    tile.for_rows({0, tile.rows()}, all_heads, [&](index_t r, index_t at) {
      for (index_t d = 0; d < dim; ++d) y.data[at * dim + d] *= seen.share(r);
      lse.data[at] = seen.log_sum(r);
    });
  }

  CpuPath path_;
  View<const T, 3> q_;
  KeyValue<const T> kv_;
  T scale_;
  AttentionPlan& plan_;
  index_t rows_, parts_, values_size_, elements_size_;
  CpuBuffer<index_t> first_;  // piece of each tile, of all
  CpuBuffer<T> pieces_, values_;
  CpuBuffer<Element> elements_;
};

}  // namespace dflash::detail
