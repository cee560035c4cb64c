#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "dflash/comm/sequence_parallel_group.hpp"
#include "dflash/core/attention_rule.hpp"
#include "dflash/core/host_vector.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/core/uploads.hpp"
#include "dflash/data/blocks.hpp"
#include "dflash/data/sample.hpp"

namespace dflash {

/// What a rank trains on in one micro-step: its context rows and its blocks of one or more packed
/// samples, and the geometry of the whole batch. There are no padding rows.
template <Backend B>
struct Batch {
  using T = typename B::value_type;

  index_t context_total = 0, blocks_total = 0;  // of all ranks of the group
  index_t block_size = 0;                       // K
  index_t samples = 0;                          // of the whole group

  Tensor<B, T, 2> features;                          // (S, C * H), this rank's rows
  Tensor<B, index_t, 1> context_position;            // (S), in its own sample
  Tensor<B, index_t, 1> block_position;              // (N * K)
  Tensor<B, std::int32_t, 1> tokens;                 // (N * K): anchor token, then masks
  Tensor<B, index_t, 1> context_begin, context_end;  // (all blocks): batch rows each block sees
  HostVector<std::int32_t> labels;                   // (N * K)
  HostVector<float> weights;                         // (N * K)

  BlockMask mask() const {
    return {context_begin.view(), context_end.view(), block_size, /*window=*/0, context_total};
  }
  index_t tokens_supervised() const {
    index_t n = 0;
    for (float w : weights) n += w > 0 ? 1 : 0;
    return n;
  }
};

namespace detail {

/// Reads the parts of `wanted` (ascending ranges over all samples' context rows, laid end to end)
/// that lie in a sample whose rows are [begin, begin + rows).
template <class Read>
void for_each_overlap(std::span<const Range> wanted, index_t begin, index_t rows, Read&& read) {
  for (const Range& range : wanted) {
    const Range part{std::max(range.begin, begin), std::min(range.end, begin + rows)};
    if (part.begin < part.end) read(Range{part.begin - begin, part.end - begin});
  }
}

/// Rows of several samples, laid end to end.
struct PackedRows {
  const FeatureRows* features;
  Range rows;
  index_t at;  // the first of them
};

/// Rows [range) of all.                                 out (range, width)
template <class T>
void read_packed(std::span<const PackedRows> parts, Range range, index_t width, T* out) {
  for (const PackedRows& part : parts)
    for_each_overlap(std::span(&range, 1), part.at, part.rows.size(), [&](Range own) {
      read_rows(*part.features, {part.rows.begin + own.begin, part.rows.begin + own.end},
                out + (part.at + own.begin - range.begin) * width);
    });
}

}  // namespace detail

/// Packs samples and their blocks, and keeps what this rank of the group holds. Only the feature
/// rows of this rank before each sample's last anchor are read; nothing is communicated.
template <Backend B, Communicator C>
Batch<B> shard(B& backend, const SequenceParallelGroup<C>& group, std::span<const Sample> samples,
               std::span<const Blocks> blocks, std::int32_t mask_token) {
  using T = typename B::value_type;
  expects(samples.size() == blocks.size(), "each sample has its blocks");
  Batch<B> batch;
  batch.samples = index_t(samples.size());
  HostVector<index_t> begin, end;
  for (const Blocks& own : blocks) {
    for (const index_t anchor : own.anchors) {
      begin.push_back(batch.context_total);
      end.push_back(batch.context_total + anchor);
    }
    if (own.count() > 0) batch.block_size = own.block_size;
    batch.context_total += own.context_rows();
    batch.blocks_total += own.count();
  }
  batch.context_begin = uploaded(backend, begin.data(), index_t(begin.size()));
  batch.context_end = uploaded(backend, end.data(), index_t(end.size()));

  const auto wanted = group.layout().context_ranges(group.rank(), batch.context_total);
  const Range own_blocks = group.layout().blocks(group.rank(), batch.blocks_total);
  index_t rows = 0;
  for (const Range& range : wanted) rows += range.size();
  const index_t width = samples.empty() ? 0 : samples.front().features->width();

  HostVector<detail::PackedRows> parts;
  HostVector<index_t> context_position, block_position;
  HostVector<std::int32_t> tokens;
  index_t context_at = 0, block_at = 0;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const Blocks& own = blocks[i];
    detail::for_each_overlap(wanted, context_at, own.context_rows(), [&](Range part) {
      expects(samples[i].features->width() == width, "all samples have features of one width");
      parts.push_back({samples[i].features.get(), part, index_t(context_position.size())});
      for (index_t p = part.begin; p < part.end; ++p) context_position.push_back(p);
    });
    const std::span<const Range> block_range(&own_blocks, 1);
    detail::for_each_overlap(block_range, block_at, own.count(), [&](Range part) {
      for (index_t n = part.begin; n < part.end; ++n)
        for (index_t slot = 0; slot < own.block_size; ++slot) {
          const auto at = static_cast<std::size_t>(n * own.block_size + slot);
          block_position.push_back(own.anchors[static_cast<std::size_t>(n)] + slot);
          tokens.push_back(slot == 0 ? own.anchor_tokens[static_cast<std::size_t>(n)] : mask_token);
          batch.labels.push_back(own.labels[at]);
          batch.weights.push_back(own.weights[at]);
        }
    });
    context_at += own.context_rows();
    block_at += own.count();
  }

  batch.features = Tensor<B, T, 2>(backend, {rows, width});
  // The batch may be made while another is trained on.
  uploads_beside(backend).upload_rows(
      rows, width, batch.features.view().data,
      [&](Range some, T* out) { detail::read_packed<T>(parts, some, width, out); });
  batch.context_position =
      uploaded(backend, context_position.data(), index_t(context_position.size()));
  batch.block_position = uploaded(backend, block_position.data(), index_t(block_position.size()));
  batch.tokens = uploaded(backend, tokens.data(), index_t(tokens.size()));
  return batch;
}

}  // namespace dflash
