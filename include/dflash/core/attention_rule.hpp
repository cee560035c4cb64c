#pragma once

#include <algorithm>
#include <concepts>
#include <initializer_list>
#include <type_traits>

#include "dflash/core/error.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// Keys and values from two sources, never concatenated: the target's context and the blocks.
///                                                     context (S, kv, D)  block (N * K, kv, D)
template <class T>
struct KeyValue {
  View<T, 3> k_context, v_context, k_block, v_block;

  template <std::same_as<const T> U>
  requires(!std::is_const_v<T>) DFLASH_HOST_DEVICE operator KeyValue<U>() const {
    return {k_context, v_context, k_block, v_block};
  }
};

/// Every r-th stripe of 64 context rows: what one index of a ring holds of a batch, laid end to
/// end.
struct RingStripe {
  static constexpr index_t rows = 64;
  index_t ring = 1, index = 0;  // r, and which of them

  /// How many of the first `total` context rows are here: where row `total` would lie.
  DFLASH_HOST_DEVICE index_t local(index_t total) const {
    const index_t turn = rows * ring, rest = total % turn - index * rows;
    return total / turn * rows + (rest < 0 ? 0 : rest < rows ? rest : rows);
  }
  /// The context row that is number `at` here.
  DFLASH_HOST_DEVICE index_t global(index_t at) const {
    return (at / rows * ring + index) * rows + at % rows;
  }
};

/// Which keys a query row sees. Block n sees context rows [begin(n), end(n)) of the batch and its
/// own K rows; end(n) is where its anchor's position lies among the context rows. With a sliding
/// window w, the row at offset o of its block sees context rows from end(n) + o - (w - 1) on, and
/// own rows 0..o. A block size of one with end(n) = position of row n is plain causal attention.
struct BlockMask {
  View<const index_t, 1> begin, end;  // (N), in rows of the batch
  index_t block_size = 1;             // K
  index_t window = 0;                 // 0: full attention
  index_t context_total = 0;          // context rows of the batch, on all ranks of the group
  RingStripe stripe = {};             // which of them are here
  Range own_blocks = {0, -1};         // whose own keys are here; an end of -1: every block's

  DFLASH_HOST_DEVICE index_t blocks() const { return end.shape[0]; }
  /// The rows of k_context that the row at `offset` of a block sees.
  DFLASH_HOST_DEVICE Range context(index_t block, index_t offset) const {
    index_t first = begin(block);
    const index_t last = end(block);
    if (window > 0 && last + offset - (window - 1) > first) {
      first = last + offset - (window - 1);
      if (first > last) first = last;
    }
    return {stripe.local(first), stripe.local(last)};
  }
  /// The rows of k_block that the row at `offset` of a block sees.
  DFLASH_HOST_DEVICE Range own(index_t block, index_t offset) const {
    if (block < own_blocks.begin || (own_blocks.end >= 0 && block >= own_blocks.end)) return {};
    const index_t first = (block - own_blocks.begin) * block_size;
    return {first, first + (window > 0 ? offset + 1 : block_size)};
  }
};

/// How many heads queries have, and keys and values, and how many elements each head has.
struct HeadSizes {
  index_t heads = 0, kv_heads = 0, dim = 0;
};

/// Which key/value head serves a query head, when a rank holds query heads [first, ...) of all and
/// the key/value heads that those need, from first / group on.
struct HeadGroups {
  index_t group = 1;  // query heads per key/value head
  index_t first = 0;

  DFLASH_HOST_DEVICE index_t kv(index_t head) const {
    return (first + head) / group - first / group;
  }
};

/// Everything attention needs to know beside its tensors.
struct AttentionRule {
  BlockMask mask;
  HeadGroups heads = {};
  double scale = 1;        // of q k^T, before the softmax
  bool may_round = false;  // the factors, to the precision of products with weights
};

namespace detail {

/// Whether two tensors have the same elements in the same places; of none, no shape is asked.
template <class T, class U>
bool same_shape(const View<T, 3>& x, const View<U, 3>& y) {
  return std::equal(x.shape, x.shape + 3, y.shape) || (x.size() == 0 && y.size() == 0);
}

/// Error unless what is read or written beside q fits it: outputs and gradients have its shape,
/// and lse and delta a number for each row and head.
template <class T, class A>
void check_beside(In<T, 3> q, std::initializer_list<In<T, 3>> like_q,
                  std::initializer_list<In<A, 2>> of_rows) {
  for (const In<T, 3>& x : like_q)
    expects(same_shape(x, q), "attention: y, dy and dq must have the shape of q");
  for (const In<A, 2>& x : of_rows)
    expects(x.shape[0] == q.shape[0] && x.shape[1] == q.shape[1],
            "attention: lse and delta must have a number for each row and head of q");
}

/// Error unless gradients of keys and values have their shapes.
template <class T>
void check_gradients(const KeyValue<const T>& kv, const KeyValue<const T>& dkv) {
  expects(same_shape(dkv.k_context, kv.k_context) && same_shape(dkv.v_context, kv.v_context) &&
              same_shape(dkv.k_block, kv.k_block) && same_shape(dkv.v_block, kv.v_block),
          "attention: gradients of keys and values must have their shapes");
}

}  // namespace detail

}  // namespace dflash
