#pragma once

#include <concepts>
#include <type_traits>

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

/// Which keys a query row sees. Block n sees context rows [begin(n), end(n)) and its own K rows;
/// end(n) is where its anchor's position lies among the context rows. With a sliding window w, the
/// row at offset o of its block sees context rows from end(n) + o - (w - 1) on, and own rows 0..o.
/// A block size of one with end(n) = position of row n is plain causal attention.
struct BlockMask {
  View<const index_t, 1> begin, end;  // (N)
  index_t block_size = 1;             // K
  index_t window = 0;                 // 0: full attention

  DFLASH_HOST_DEVICE index_t blocks() const { return end.shape[0]; }
  DFLASH_HOST_DEVICE Range context(index_t block, index_t offset) const {
    Range seen{begin(block), end(block)};
    if (window > 0) {
      const index_t first = seen.end + offset - (window - 1);
      if (first > seen.begin) seen.begin = first < seen.end ? first : seen.end;
    }
    return seen;
  }
  /// How many of the block's own rows, from its first on, the row at `offset` sees.
  DFLASH_HOST_DEVICE index_t own(index_t offset) const {
    return window > 0 ? offset + 1 : block_size;
  }
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
  HeadGroups heads;
  double scale = 1;  // of q k^T, before the softmax
};

}  // namespace dflash
