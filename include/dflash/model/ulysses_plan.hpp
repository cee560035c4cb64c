#pragma once

#include <vector>

#include "dflash/comm/sequence_layout.hpp"
#include "dflash/core/attention_rule.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// Who holds which rows and heads of one attention on a sequence group, and hence how much every
/// rank sends to every other: what UlyssesAttention exchanges, and what a planner counts. A worker
/// is a rank in its second role, computing its heads for the rows of all.
struct UlyssesPlan {
  SequenceLayout layout;
  index_t heads = 0, kv_heads = 0, head_dim = 0, block_size = 0;
  index_t context_total = 0, blocks_total = 0;  // of the batch

  index_t ranks() const { return layout.ranks(); }
  bool same_ring(index_t a, index_t b) const { return a / layout.ulysses == b / layout.ulysses; }

  /// Rows that a rank holds of the context, and of the blocks.
  index_t context_rows(index_t rank) const { return layout.context_rows(rank, context_total); }
  index_t block_rows(index_t rank) const {
    return layout.blocks(rank, blocks_total).size() * block_size;
  }
  /// Query heads that a worker computes: [i nh / u, (i + 1) nh / u).
  Range query_heads(index_t worker) const {
    const index_t i = worker % layout.ulysses;
    return {i * heads / layout.ulysses, (i + 1) * heads / layout.ulysses};
  }
  /// Key/value heads that those need; a head may be needed by several workers.
  Range key_heads(index_t worker) const {
    const index_t group = heads / kv_heads;
    const Range q = query_heads(worker);
    return {q.begin / group, (q.end - 1) / group + 1};
  }

  /// Elements, forward: context keys and values; then queries and block keys and values.
  index_t context_in(index_t from, index_t worker) const {
    return same_ring(from, worker) ? 2 * context_rows(from) * key_width(worker) : 0;
  }
  index_t blocks_in(index_t from, index_t worker) const {
    const index_t keys = same_ring(from, worker) ? 2 * key_width(worker) : 0;
    return block_rows(from) * (query_width(worker) + keys);
  }
  /// Outputs, with their log-sum-exp if there are parts to merge.
  index_t blocks_out(index_t worker, index_t to) const {
    return block_rows(to) * (query_width(worker) + (layout.ring > 1 ? lse_width(worker) : 0));
  }
  /// Elements, backward: dy, delta and, for merged parts, the log-sum-exp of all keys; then dq, dk
  /// and dv of the blocks; dk and dv of the context.
  index_t gradients_in(index_t from, index_t worker) const {
    return block_rows(from) * (query_width(worker) + lse_width(worker) * (layout.ring > 1 ? 2 : 1));
  }
  index_t gradients_out(index_t worker, index_t to) const { return blocks_in(to, worker); }
  index_t context_out(index_t worker, index_t to) const { return context_in(to, worker); }

  index_t query_width(index_t worker) const { return query_heads(worker).size() * head_dim; }
  index_t key_width(index_t worker) const { return key_heads(worker).size() * head_dim; }
  index_t lse_width(index_t worker) const { return query_heads(worker).size() * accumulator_size; }

  index_t accumulator_size = 1;  // of log-sum-exp and delta, in elements of the exchanged type

  /// Elements that a rank sends to others in one layer's forward and backward: in three collectives
  /// each, the context's among them.
  index_t sent_by(index_t rank) const {
    index_t sum = 0;
    for (index_t other = 0; other < ranks(); ++other)
      if (other != rank)
        sum += context_in(rank, other) + blocks_in(rank, other) + blocks_out(rank, other) +
               gradients_in(rank, other) + gradients_out(rank, other) + context_out(rank, other);
    return sum;
  }
  static constexpr index_t collectives = 6;  // all-to-alls of one layer, forward and backward

  /// Throws Error if a worker would have no head.
  void check() const {
    if (layout.ulysses > heads)
      throw Error("the Ulysses degree " + std::to_string(layout.ulysses) +
                  " is larger than the number of query heads, " + std::to_string(heads));
  }
};

}  // namespace dflash
