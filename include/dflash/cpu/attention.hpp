#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/attention_factors.hpp"
#include "dflash/cpu/attention_of_few.hpp"
#include "dflash/cpu/attention_softmax.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

namespace detail {

/// What a thread keeps of a tile: its queries, scores of a chunk, and what it has summed so far.
template <class T>
struct TileSums {
  T* data;
  index_t rows, dim;

  static index_t size(index_t rows, index_t dim) { return rows * (2 * dim + key_chunk + 4); }
  RunningSoftmax<T> run() const { return {data, data + rows, data + 2 * rows, data + 3 * rows}; }
  T* q() const { return data + 4 * rows; }
  T* y() const { return q() + rows * dim; }
  T* score() const { return y() + rows * dim; }

  void begin(const QueryTile& tile, View<const T, 3> all_q, double scale) const {
    for (index_t i = 0; i < tile.rows(); ++i) {
      const T* from = all_q.data + tile.source(i, all_q.shape[1]) * dim;
      for (index_t d = 0; d < dim; ++d) q()[i * dim + d] = from[d] * T(scale);
    }
    std::fill_n(y(), tile.rows() * dim, T(0));
    std::fill_n(run().top, tile.rows(), -std::numeric_limits<T>::infinity());
    std::fill_n(run().sum, tile.rows(), T(0));
  }
  void end(const QueryTile& tile, View<T, 3> all_y, View<T, 2> lse) const {
    const RunningSoftmax<T> seen = run();
    for (index_t i = 0; i < tile.rows(); ++i) {
      const index_t at = tile.source(i, all_y.shape[1]);
      const T share = seen.sum[i] > 0 ? 1 / seen.sum[i] : T(0);
      for (index_t d = 0; d < dim; ++d) all_y.data[at * dim + d] = y()[i * dim + d] * share;
      lse.data[at] = seen.top[i] + std::log(seen.sum[i]);
    }
  }
};

/// Attention of one tile after the other, in products of packed factors.
template <class Factors, class T>
void attention_of_tiles(CpuBackend<T>& backend, View<const T, 3> q, const KeyValue<const T>& kv,
                        const AttentionRule& rule, AttentionPlan& plan, View<T, 3> y,
                        View<T, 2> lse) {
  using Element = typename Factors::Element;
  const auto& kernel = Factors::kernel(backend);
  const CpuPath path = backend.path();
  const index_t dim = q.shape[2], depth = Factors::depth(dim), rows = plan.rows(),
                pairs = Factors::depth(key_chunk), sums_size = TileSums<T>::size(rows, dim),
                factors_size =
                    rows * (depth + pairs) + key_chunk * depth + pairs * kernel.padded(dim) + 16;
  auto all_sums = backend.template allocate<T>(sums_size * backend.threads());
  auto all_factors = backend.template allocate<Element>(factors_size * backend.threads());
  const index_t work = q.size() * (kv.k_context.shape[0] + key_chunk);
  backend.parallel_for(plan.tiles() * plan.kv_heads(), work, [&](index_t task, int thread) {
    const index_t g = task % plan.kv_heads();
    // Tiles further back see more keys: they go first, so that all threads end together.
    const QueryTile tile = plan.tile(plan.tiles() - 1 - task / plan.kv_heads(), g, thread);
    const TileSums<T> sums{all_sums.data() + sums_size * thread, rows, dim};
    Element* const keys = all_factors.data() + factors_size * thread;
    Element* const values = keys + key_chunk * depth;
    Element* const shares = values + pairs * kernel.padded(dim);
    sums.begin(tile, q, rule.scale);
    const Element* const queries =
        Factors::left(path, sums.q(), tile.rows(), dim, dim, shares + rows * pairs);
    for_each_chunk(tile, [&](const KeyChunk& chunk) {
      const auto k = chunk.own ? kv.k_block : kv.k_context;
      const auto v = chunk.own ? kv.v_block : kv.v_context;
      const index_t first = chunk.rows.begin, count = chunk.rows.size(), slots = chunk.slots.end,
                    used = Factors::depth(slots);
      const auto rows_of = [](const Element* from, index_t step) {
        return [=](Range r) { return Strided<Element>{from + r.begin * step, step, 1}; };
      };
      T* const score = sums.score() + first * key_chunk;
      Factors::pack_keys(kernel, k.data + g * dim, k.stride(), dim, chunk, keys);
      multiply(kernel, rows_of(queries + first * depth, depth), count,
               Panels<Element>{keys, depth, kernel.padded(slots)}, {0, depth}, score, key_chunk,
               false);
      softmax_step(path, chunk, tile.heads.size(), sums.score(), sums.run(), sums.y(), dim);
      const Element* const share = Factors::left(path, score, count, slots, key_chunk, shares);
      Factors::pack_values(kernel, v.data + g * dim, v.stride(), dim, chunk, values);
      multiply(kernel, rows_of(share, pairs), count, Panels<Element>{values, used, dim}, {0, used},
               sums.y() + first * dim, dim, true);
    });
    sums.end(tile, y, lse);
  });
}

}  // namespace detail

/// y = softmax(scale q k^T, where the mask lets it) v, and lse = log sum exp of each row's scores,
/// kept for backward. A row that sees no key gets y = 0 and lse = -infinity. The bits of a row
/// depend on its q and on the keys and values that it sees, and on nothing else.
///                                                 q, y (N * K, heads, D)  lse (N * K, heads)
template <class T>
void attention(CpuBackend<T>& backend, In<T, 3> q, KeyValue<const std::type_identity_t<T>> kv,
               AttentionRule rule, Out<T, 3> y, Out<T, 2> lse) {
  detail::check_attention(q, kv, rule);
  detail::AttentionPlan plan(backend, rule, q.shape[1]);
  detail::with_factors(backend, rule.may_round, [&]<class Factors>(Factors) {
    if (detail::has_few_rows<T>(plan.rows(), q.shape[2]))
      detail::AttentionOfFew<Factors, T>(backend, q, kv, rule.scale, plan).run(backend, y, lse);
    else
      detail::attention_of_tiles<Factors>(backend, q, kv, rule, plan, y, lse);
  });
}

}  // namespace dflash
