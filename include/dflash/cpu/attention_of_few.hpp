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
/// gemm would take longer than the products. First all scores, then what they weigh: threads share
/// a tile's keys in the one and the columns of its values in the other. The same chains of
/// multiply-adds as for many rows, so the same bits.
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
    const index_t dim = q.shape[2], heads = plan.kv_heads();
    first_ = backend.template allocate<index_t>(plan.tiles() + 1);
    first_.data()[0] = 0;
    for (index_t t = 0; t < plan.tiles(); ++t) {
      index_t chunks = 0;
      for_each_chunk(plan.tile(t, 0, 0), [&](const KeyChunk&) { ++chunks; });
      first_.data()[t + 1] = first_.data()[t] + chunks;
    }
    scores_ = backend.template allocate<T>(first_.data()[plan.tiles()] * heads * each());
    values_size_ = rows_ * (2 * dim + key_chunk + 4);
    elements_size_ = (rows_ + key_chunk) * (dim + key_chunk + 16);
    values_ = backend.template allocate<T>(values_size_ * backend.threads());
    elements_ = backend.template allocate<Element>(elements_size_ * backend.threads());
  }

  void run(CpuBackend<T>& backend, View<T, 3> y, View<T, 2> lse) {
    // The work is in turning and reading the keys.
    const index_t tasks = plan_.tiles() * parts_,
                  work = few_rows * q_.size() * (kv_.k_context.shape[0] + key_chunk);
    backend.parallel_for(tasks, work, [&](index_t task, int thread) {
      const index_t t = plan_.tiles() - 1 - task / parts_, part = task % parts_;
      for (index_t g = 0; g < plan_.kv_heads(); ++g) find_scores(t, g, part, thread);
    });
    backend.parallel_for(tasks, work, [&](index_t task, int thread) {
      const index_t t = plan_.tiles() - 1 - task / parts_, part = task % parts_, dim = q_.shape[2];
      for (index_t g = 0; g < plan_.kv_heads(); ++g) {
        const Range columns{std::max(cut(part) - g * dim, index_t(0)),
                            std::min(cut(part + 1) - g * dim, dim)};
        if (columns.begin < columns.end) add_values(t, g, columns, thread, y, lse);
      }
    });
  }

 private:
  using Element = typename Factors::Element;

  /// Where a part of the columns of all heads' values begins.
  index_t cut(index_t part) const {
    const index_t all = plan_.kv_heads() * q_.shape[2];
    return part == parts_ ? all : all * part / parts_ / 16 * 16;
  }
  /// Scores of one chunk and one head.
  index_t each() const { return rows_ * key_chunk; }
  T* score_of(index_t t, index_t g, index_t chunk) {
    const index_t before = first_.data()[t] * plan_.kv_heads(),
                  chunks = first_.data()[t + 1] - first_.data()[t];
    return scores_.data() + (before + g * chunks + chunk) * each();
  }

  /// Of a part of the chunks that a tile sees.
  void find_scores(index_t t, index_t g, index_t part, int thread) {
    const index_t dim = q_.shape[2], depth = Factors::depth(dim),
                  chunks = first_.data()[t + 1] - first_.data()[t];
    const Range some{chunks * part / parts_, chunks * (part + 1) / parts_};
    const QueryTile tile = plan_.tile(t, g, thread);
    T* const scaled = values_.data() + thread * values_size_;
    for (index_t i = 0; i < tile.rows(); ++i) {
      const T* const from = q_.data + tile.source(i, q_.shape[1]) * dim;
      for (index_t d = 0; d < dim; ++d) scaled[i * dim + d] = from[d] * scale_;
    }
    Element* const turned = elements_.data() + thread * elements_size_;
    const Element* const queries =
        Factors::left(path_, scaled, tile.rows(), dim, dim, turned + key_chunk * depth);
    index_t c = 0;
    for_each_chunk(tile, [&](const KeyChunk& chunk) {
      if (c >= some.begin && c < some.end) {
        const auto k = chunk.own ? kv_.k_block : kv_.k_context;
        multiply_keys(queries, k.data + g * dim, k.stride(), chunk, turned, score_of(t, g, c));
      }
      ++c;
    });
  }

  void multiply_keys(const Element* queries, const T* keys, index_t step, const KeyChunk& chunk,
                     Element* turned, T* score) const {
    const index_t dim = q_.shape[2], depth = Factors::depth(dim);
    Factors::on_vectors(
        path_, [ =, &chunk ](auto bytes) __attribute__((always_inline)) {
          using Step = typename Factors::template Step<bytes>;
          constexpr index_t lanes = Step::V::lanes;
          const index_t first = chunk.rows.begin, begin = chunk.slots.begin / lanes * lanes,
                        end = (chunk.slots.end + lanes - 1) / lanes * lanes;
          Factors::template turn_keys<bytes>(keys + chunk.first * step, step, chunk.slots, dim,
                                             turned);
          few_products<Step>(queries + first * depth, depth, chunk.rows.size(), depth,
                             turned + begin, key_chunk, end - begin,
                             score + first * key_chunk + begin, key_chunk, false);
        });
  }

  /// Some columns of a head.
  void add_values(index_t t, index_t g, Range columns, int thread, View<T, 3> y, View<T, 2> lse) {
    const index_t dim = q_.shape[2], width = columns.size();
    const QueryTile tile = plan_.tile(t, g, thread);
    T* const score = values_.data() + thread * values_size_;
    T* const sum = score + each();
    T* const state = sum + rows_ * dim;
    const RunningSoftmax<T> seen{state, state + rows_, state + 2 * rows_, state + 3 * rows_};
    std::fill_n(sum, tile.rows() * width, T(0));
    seen.begin(tile.rows());
    index_t c = 0;
    for_each_chunk(tile, [&](const KeyChunk& chunk) {
      const auto v = chunk.own ? kv_.v_block : kv_.v_context;
      const index_t first = chunk.rows.begin * key_chunk;
      std::copy_n(score_of(t, g, c++) + first, chunk.rows.size() * key_chunk, score + first);
      softmax_step(path_, chunk, tile.heads.size(), score, seen, sum, width);
      multiply_values(score + first, v.data + g * dim + columns.begin, v.stride(), chunk, width,
                      elements_.data() + thread * elements_size_, sum + chunk.rows.begin * width);
    });
    for (index_t i = 0; i < tile.rows(); ++i) {
      const index_t at = tile.source(i, q_.shape[1]);
      const T share = seen.share(i);
      T* const to = y.data + at * dim + columns.begin;
      for (index_t d = 0; d < width; ++d) to[d] = sum[i * width + d] * share;
      if (columns.begin == 0) lse.data[at] = seen.log_sum(i);
    }
  }

  void multiply_values(const T* score, const T* values, index_t step, const KeyChunk& chunk,
                       index_t width, Element* scratch, T* sum) const {
    const index_t pairs = Factors::depth(key_chunk), first = Factors::first(chunk.slots.begin);
    const Element* const shares =
        Factors::left(path_, score, chunk.rows.size(), chunk.slots.end, key_chunk, scratch);
    Element* const room = scratch + rows_ * pairs + 16;
    Factors::on_vectors(
        path_, [ =, &chunk ](auto bytes) __attribute__((always_inline)) {
          using Step = typename Factors::template Step<bytes>;
          index_t row_step = step;
          const Element* const rows =
              Factors::value_rows(values + chunk.first * step, row_step, chunk.slots, width, room);
          few_products<Step>(shares + first, pairs, chunk.rows.size(),
                             Factors::depth(chunk.slots.end) - first, rows, row_step, width, sum,
                             width, true);
        });
  }

  CpuPath path_;
  View<const T, 3> q_;
  KeyValue<const T> kv_;
  T scale_;
  AttentionPlan& plan_;
  index_t rows_, parts_, values_size_, elements_size_;
  CpuBuffer<index_t> first_;  // chunk of each tile, of all
  CpuBuffer<T> scores_, values_;
  CpuBuffer<Element> elements_;
};

}  // namespace dflash::detail
