#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "dflash/comm/sequence_parallel_group.hpp"
#include "dflash/core/attention_rule.hpp"
#include "dflash/core/bfloat16.hpp"
#include "dflash/core/host_vector.hpp"
#include "dflash/core/stored_rows.hpp"
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

  StoredTensor<B> features;                          // (S, C * H), this rank's rows
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

/// Context rows of a sample that a rank holds, and the first of them in its part of the batch.
struct OwnRows {
  std::size_t sample;
  Range rows;
  index_t at;
};

/// All that a rank holds of samples with these blocks.
template <Communicator C>
HostVector<OwnRows> own_rows(const SequenceParallelGroup<C>& group,
                             std::span<const Blocks> blocks) {
  index_t total = 0, begin = 0, at = 0;
  for (const Blocks& own : blocks) total += own.context_rows();
  const auto wanted = group.layout().context_ranges(group.rank(), total);
  HostVector<OwnRows> all;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    for_each_overlap(wanted, begin, blocks[i].context_rows(), [&](Range part) {
      all.push_back({i, part, at});
      at += part.size();
    });
    begin += blocks[i].context_rows();
  }
  return all;
}

/// Rows [range) of those.                                                       out (range, width)
template <class T>
void read_own_rows(std::span<const Sample> samples, std::span<const OwnRows> parts, Range range,
                   index_t width, T* out) {
  for (const OwnRows& part : parts)
    for_each_overlap(std::span(&range, 1), part.at, part.rows.size(), [&](Range some) {
      read_rows(*samples[part.sample].features,
                {part.rows.begin + some.begin, part.rows.begin + some.end},
                out + (part.at + some.begin - range.begin) * width);
    });
}

/// A batch but for its features.
template <Backend B, Communicator C>
Batch<B> shard_without_features(B& backend, const SequenceParallelGroup<C>& group,
                                std::span<const Blocks> blocks, std::int32_t mask_token,
                                std::span<const OwnRows> parts) {
  Batch<B> batch;
  batch.samples = index_t(blocks.size());
  HostVector<index_t> begin, end, context_position, block_position;
  for (const Blocks& own : blocks) {
    for (const index_t anchor : own.anchors) {
      begin.push_back(batch.context_total);
      end.push_back(batch.context_total + anchor);
    }
    if (own.count() > 0) batch.block_size = own.block_size;
    batch.context_total += own.context_rows();
    batch.blocks_total += own.count();
  }
  for (const OwnRows& part : parts)
    for (index_t p = part.rows.begin; p < part.rows.end; ++p) context_position.push_back(p);

  HostVector<std::int32_t> tokens;
  const Range own_blocks = group.layout().blocks(group.rank(), batch.blocks_total);
  index_t block_at = 0;
  for (const Blocks& own : blocks) {
    for_each_overlap(std::span(&own_blocks, 1), block_at, own.count(), [&](Range part) {
      for (index_t n = part.begin; n < part.end; ++n)
        for (index_t slot = 0; slot < own.block_size; ++slot) {
          const auto at = static_cast<std::size_t>(n * own.block_size + slot);
          block_position.push_back(own.anchors[static_cast<std::size_t>(n)] + slot);
          tokens.push_back(slot == 0 ? own.anchor_tokens[static_cast<std::size_t>(n)] : mask_token);
          batch.labels.push_back(own.labels[at]);
          batch.weights.push_back(own.weights[at]);
        }
    });
    block_at += own.count();
  }
  const auto to_backend = [&](const auto& values) {
    return uploaded(backend, values.data(), index_t(values.size()));
  };
  batch.context_begin = to_backend(begin), batch.context_end = to_backend(end);
  batch.context_position = to_backend(context_position);
  batch.block_position = to_backend(block_position);
  batch.tokens = to_backend(tokens);
  return batch;
}

}  // namespace detail

/// Packs samples and their blocks, and keeps what this rank of the group holds. Only the feature
/// rows of this rank before each sample's last anchor are read; nothing is communicated. Features
/// that are all stored in bfloat16 stay so where the backend keeps such rows.
template <Backend B, Communicator C>
Batch<B> shard(B& backend, const SequenceParallelGroup<C>& group, std::span<const Sample> samples,
               std::span<const Blocks> blocks, std::int32_t mask_token) {
  using T = typename B::value_type;
  expects(samples.size() == blocks.size(), "each sample has its blocks");
  const auto parts = detail::own_rows(group, blocks);
  const index_t width = samples.empty() ? 0 : samples.front().features->width();
  for (const detail::OwnRows& part : parts)
    expects(samples[part.sample].features->width() == width,
            "all samples have features of one width");
  Batch<B> batch = detail::shard_without_features(backend, group, blocks, mask_token, parts);
  const auto read = [&]<class U>(Tensor<B, U, 2> rows) {
    // The batch may be made while another is trained on.
    uploads_beside(backend).upload_rows(
        batch.context_position.size(), width, rows.view().data,
        [&](Range some, U* out) { detail::read_own_rows(samples, parts, some, width, out); });
    return StoredTensor<B>(std::move(rows));
  };
  const index_t shape[] = {batch.context_position.size(), width};
  if constexpr (KeepsBfloat16Rows<B>)
    if (!samples.empty() && std::all_of(samples.begin(), samples.end(), [](const Sample& sample) {
          return sample.features->in_bfloat16();
        })) {
      batch.features = read(Tensor<B, bfloat16, 2>(backend, shape));
      return batch;
    }
  batch.features = read(Tensor<B, T, 2>(backend, shape));
  return batch;
}

/// The same of samples whose features this rank has: those of exchange_features.
template <Backend B, Communicator C>
Batch<B> shard(B& backend, const SequenceParallelGroup<C>& group, std::span<const Blocks> blocks,
               std::int32_t mask_token, Tensor<B, typename B::value_type, 2> features) {
  Batch<B> batch = detail::shard_without_features(backend, group, blocks, mask_token,
                                                  detail::own_rows(group, blocks));
  expects(features.view().shape[0] == batch.context_position.size(),
          "features are those of this rank's context rows");
  batch.features = std::move(features);
  return batch;
}

}  // namespace dflash
