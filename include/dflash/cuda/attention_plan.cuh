#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>
#include <initializer_list>

#include "dflash/core/attention_rule.hpp"
#include "dflash/core/error.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/launch.cuh"

namespace dflash::cuda {

/// Rows [begin, end) of keys.
struct alignas(8) KeyRange {
  int begin, end;
};

/// The rows of k_context and of k_block that a query row sees.
struct alignas(16) SeenKeys {
  KeyRange context, own;

  __device__ const KeyRange& of(bool own_keys) const { return own_keys ? own : context; }
};

/// The rows of k_context that some row of a block sees. Keys are taken in tiles counted from
/// `base`, the first row of the block's sample: the parts into which the sums of a query row fall
/// do not depend on what is packed beside its sample.
struct alignas(16) BlockKeys {
  int base;
  KeyRange seen;
  int unused;

  __device__ bool sees(int first, int last) const {
    return max(seen.begin, first) < min(seen.end, last);
  }
};

/// Where few query rows see many keys, the context of a sample is cut into parts of `keys` rows,
/// counted from its first, which different blocks of threads take; 0: it is not.
struct KeyParts {
  int keys = 0, count = 1;
  float *y = nullptr, *lse = nullptr;  // (parts, N * K, heads, D), (parts, N * K, heads)

  /// What lies in a part of the context rows of a sample that begins at row `base`.
  __device__ KeyRange cut(KeyRange seen, int base, int part) const {
    if (keys == 0) return seen;
    const int begin = base + part * keys;
    return {max(seen.begin, begin), min(seen.end, begin + keys)};
  }
};

/// What the kernels of attention know beside their tensors.
struct AttentionShape {
  const SeenKeys* seen;     // (N * K)
  const BlockKeys* blocks;  // (N)
  int block_count, block_size;
  int own_begin, own_end;  // blocks whose own keys are here
  int heads, kv_heads, dim, group, first_head;
  int context_rows;
  float scale;
  bool vectors;  // rows start at multiples of 16 bytes

  __device__ int rows() const { return block_count * block_size; }
};

[[maybe_unused]] static __global__ void plan_attention_kernel(BlockMask mask, SeenKeys* seen,
                                                              BlockKeys* blocks, int* counters,
                                                              int counter_count) {
  const index_t row = index_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < counter_count) counters[row] = 0;
  if (row >= mask.blocks() * mask.block_size) return;
  const index_t block = row / mask.block_size, offset = row % mask.block_size;
  const Range context = mask.context(block, offset), own = mask.own(block, offset);
  seen[row] = {{int(context.begin), int(context.end)}, {int(own.begin), int(own.end)}};
  if (offset == 0)
    blocks[block] = {
        int(mask.stripe.local(mask.begin(block))), {int(context.begin), int(context.end)}, 0};
}

/// The mask of one attention, worked out on the device for each query row and block.
template <class T>
class AttentionPlan {
 public:
  /// `others` are the further tensors of heads that the kernels read or write.
  AttentionPlan(CudaBackend<T>& backend, In<T, 3> q, const KeyValue<const T>& kv,
                const AttentionRule& rule, std::initializer_list<const T*> others)
      : seen_(backend.template allocate<SeenKeys>(q.shape[0])),
        blocks_(backend.template allocate<BlockKeys>(rule.mask.blocks())),
        counters_(backend.template allocate<int>(counter_count)) {
    const BlockMask& mask = rule.mask;
    const index_t rows = q.shape[0], heads = q.shape[1], dim = q.shape[2];
    expects(rows == mask.blocks() * mask.block_size && mask.begin.shape[0] == mask.blocks(),
            "attention: q must have blocks * block size rows");
    expects(kv.v_context.size() == kv.k_context.size() && kv.v_block.size() == kv.k_block.size(),
            "attention: k and v must be as large");
    expects(dim <= largest_head, "attention: the head size is at most 256");
    expects(rule.scale > 0, "attention: the scale must be positive");
    expects(rows * heads < INT_MAX && kv.k_context.shape[0] < INT_MAX - 4096,
            "attention: too many rows for one GPU");
    shape_ = {.seen = seen_.data(),
              .blocks = blocks_.data(),
              .block_count = int(mask.blocks()),
              .block_size = int(mask.block_size),
              .own_begin = int(mask.own_blocks.begin),
              .own_end = int(mask.own_blocks.end < 0 ? mask.blocks() : mask.own_blocks.end),
              .heads = int(heads),
              .kv_heads = int(kv.k_context.shape[1]),
              .dim = int(dim),
              .group = int(rule.heads.group),
              .first_head = int(rule.heads.first),
              .context_rows = int(kv.k_context.shape[0]),
              .scale = float(rule.scale),
              .vectors = dim % 8 == 0 &&
                         aligned({q.data, kv.k_context.data, kv.v_context.data, kv.k_block.data,
                                  kv.v_block.data}) &&
                         aligned(others)};
    const index_t own = (shape_.own_end - shape_.own_begin) * mask.block_size;
    expects(own <= kv.k_block.shape[0], "attention: the rows of a block are not there");
    used_kv_heads_ = heads > 0 ? rule.heads.kv(heads - 1) + 1 : 0;
    launch(backend.stream(), plan_attention_kernel, blocks_for(rows, 128), 128, 0, mask,
           seen_.data(), blocks_.data(), counters_.data(), counter_count);
  }

  const AttentionShape& shape() const { return shape_; }
  unsigned used_kv_heads() const { return unsigned(used_kv_heads_); }
  /// How many tiles of `each` hold the (query row, head) pairs of one key/value head.
  unsigned query_tiles(index_t each) const {
    const index_t count = std::min(shape_.group, shape_.heads);
    return blocks_for(index_t(shape_.block_count) * shape_.block_size * count, each);
  }

  /// How many tasks of KeyGradientTile there are: of the context's keys, and of the blocks' own.
  unsigned context_tasks(index_t each, index_t parts) const {
    return blocks_for(shape_.context_rows, each) * unsigned(parts);
  }
  unsigned own_tasks(index_t each) const {
    return blocks_for(index_t(shape_.own_end - shape_.own_begin) * shape_.block_size, each);
  }
  unsigned key_tiles(index_t each, index_t parts) const {
    return context_tasks(each, parts) + own_tasks(each);
  }

  /// A number that is 0 until a kernel changes it, one for each that hands out its work in turn.
  int* counter(int which) const {
    expects(which < counter_count, "attention: too many kernels of one plan");
    return counters_.data() + which;
  }

  static constexpr index_t largest_head = 256;

 private:
  static constexpr int counter_count = 3;

  static bool aligned(std::initializer_list<const T*> pointers) {
    for (const T* p : pointers)
      if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) return false;
    return true;
  }

  typename CudaBackend<T>::template Buffer<SeenKeys> seen_;
  typename CudaBackend<T>::template Buffer<BlockKeys> blocks_;
  mutable typename CudaBackend<T>::template Buffer<int> counters_;
  AttentionShape shape_ = {};
  index_t used_kv_heads_ = 0;
};

}  // namespace dflash::cuda
