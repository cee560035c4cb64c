#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "dflash/core/choices.hpp"
#include "dflash/core/random.hpp"
#include "dflash/data/sample.hpp"

namespace dflash {

/// Which positions may start a block.
enum class AnchorRule {
  supervised_pair,   // the anchor and the next token are supervised; tail blocks may be partial
  supervised_start,  // the anchor is supervised and the whole block lies inside the sequence
};
inline constexpr auto anchor_rules = choices<AnchorRule>(
    "anchor rule",
    {{"pair", AnchorRule::supervised_pair}, {"start", AnchorRule::supervised_start}});

/// How many blocks a sample gives, how long, and where.
struct BlockOptions {
  index_t count = 512;  // at most
  index_t size = 16;    // K
  AnchorRule rule = AnchorRule::supervised_pair;
};

/// What one sample is trained on: N blocks of K tokens, each predicted from the context before its
/// anchor. Slot 0 is the anchor itself and never supervised.
struct Blocks {
  index_t block_size = 0;
  std::vector<index_t> anchors;             // (N), ascending
  std::vector<std::int32_t> anchor_tokens;  // (N)
  std::vector<std::int32_t> labels;         // (N * K), the token at anchor + slot
  std::vector<float> weights;               // (N * K), 1 where the slot is supervised, else 0

  index_t count() const { return index_t(anchors.size()); }
  /// Context rows that some block sees: those before the last anchor.
  index_t context_rows() const { return anchors.empty() ? 0 : anchors.back(); }
};

/// Every position that may be an anchor, ascending.
inline std::vector<index_t> anchor_candidates(std::span<const std::uint8_t> loss_mask,
                                              const BlockOptions& options) {
  const index_t length = index_t(loss_mask.size());
  const auto supervised = [&](index_t i) { return loss_mask[static_cast<std::size_t>(i)] != 0; };
  std::vector<index_t> found;
  if (options.rule == AnchorRule::supervised_pair) {
    for (index_t i = 0; i + 1 < length; ++i)
      if (supervised(i) && supervised(i + 1)) found.push_back(i);
  } else {
    const index_t last = std::max<index_t>(length - options.size, 0);
    for (index_t i = 0; i <= last && i < length; ++i)
      if (supervised(i)) found.push_back(i);
  }
  return found;
}

/// How many of a sample's candidates become anchors. The supervised_start rule leaves one candidate
/// of the richest sample that shares its batch (`most` candidates) out, as the rule's origin does.
inline index_t anchor_count(const BlockOptions& options, index_t candidates, index_t most) {
  const index_t limit = options.rule == AnchorRule::supervised_pair ? most : most - 1;
  return std::max<index_t>(0, std::min({options.count, candidates, limit}));
}

/// The blocks that start at the given anchors.
inline Blocks blocks_at(std::span<const std::int32_t> tokens,
                        std::span<const std::uint8_t> loss_mask, std::vector<index_t> anchors,
                        index_t block_size) {
  const index_t length = index_t(tokens.size());
  Blocks blocks{.block_size = block_size,
                .anchors = std::move(anchors),
                .anchor_tokens = {},
                .labels = {},
                .weights = {}};
  for (const index_t anchor : blocks.anchors) {
    expects(anchor >= 0 && anchor < length, "an anchor lies inside its sample");
    blocks.anchor_tokens.push_back(tokens[static_cast<std::size_t>(anchor)]);
    for (index_t slot = 0; slot < block_size; ++slot) {
      const auto p = static_cast<std::size_t>(std::min(anchor + slot, length - 1));
      blocks.labels.push_back(tokens[p]);
      blocks.weights.push_back(slot > 0 && anchor + slot < length && loss_mask[p] != 0 ? 1.0f
                                                                                       : 0.0f);
    }
  }
  return blocks;
}

/// Draws a sample's blocks: a pure function of (sample, seed, epoch), equal on every rank and after
/// every resume. Anchors are uniform without replacement; a sample without candidates gives none.
inline Blocks sample_blocks(const Sample& sample, const BlockOptions& options, std::uint64_t seed,
                            std::uint64_t epoch) {
  const std::span tokens(sample.tokens.data, static_cast<std::size_t>(sample.tokens.size()));
  const std::span mask(sample.loss_mask.data, static_cast<std::size_t>(sample.loss_mask.size()));
  const auto candidates = anchor_candidates(mask, options);
  const index_t count =
      anchor_count(options, index_t(candidates.size()), index_t(candidates.size()));

  const Random random(Random(seed, epoch).integer(0),
                      XXH3_64bits(sample.id.data(), sample.id.size()));
  std::vector<std::pair<std::uint64_t, index_t>> drawn;
  for (index_t candidate : candidates)
    drawn.emplace_back(random.integer(std::uint64_t(candidate)), candidate);
  std::nth_element(drawn.begin(), drawn.begin() + count, drawn.end());
  std::vector<index_t> anchors;
  for (index_t i = 0; i < count; ++i) anchors.push_back(drawn[static_cast<std::size_t>(i)].second);
  std::sort(anchors.begin(), anchors.end());
  return blocks_at(tokens, mask, std::move(anchors), options.size);
}

}  // namespace dflash
