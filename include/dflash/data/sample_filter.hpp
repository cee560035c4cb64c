#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "dflash/core/choices.hpp"
#include "dflash/core/config.hpp"

namespace dflash {

/// What a store is captured for.
enum class ModelType { eagle3, dflash };

inline constexpr auto model_types = choices<ModelType>(
    "--model-type", {{"eagle3", ModelType::eagle3}, {"dflash", ModelType::dflash}});

/// Which samples are worth training on.
enum class SampleFilter {
  min_loss,       // enough supervised tokens inside whole blocks
  adjacent_pair,  // two neighbouring supervised tokens: one possible anchor
};

inline constexpr auto sample_filters = choices<SampleFilter>(
    "--sample-filter",
    {{"min-loss", SampleFilter::min_loss}, {"adjacent-pair", SampleFilter::adjacent_pair}});

inline bool has_adjacent_pair(std::span<const std::uint8_t> loss_mask) {
  for (std::size_t i = 0; i + 1 < loss_mask.size(); ++i)
    if (loss_mask[i] != 0 && loss_mask[i + 1] != 0) return true;
  return false;
}

/// Supervised tokens among the first floor(length / block_size) * block_size.
inline index_t supervised_in_whole_blocks(std::span<const std::uint8_t> loss_mask,
                                          index_t block_size) {
  const std::size_t whole = loss_mask.size() / std::size_t(block_size) * std::size_t(block_size);
  index_t count = 0;
  for (std::size_t i = 0; i < whole; ++i) count += loss_mask[i] != 0 ? 1 : 0;
  return count;
}

/// The filter of the generator and of both trainers.
struct FilterOptions {
  ModelType model_type = ModelType::dflash;
  SampleFilter filter = SampleFilter::min_loss;
  index_t block_size = 16;
  std::optional<index_t> min_loss_tokens = {};  // default: two blocks' worth

  /// Why a sample is dropped, or nothing if it is kept.
  std::optional<std::string> reason_to_drop(std::span<const std::uint8_t> loss_mask) const {
    if (model_type == ModelType::eagle3) {
      return {};
    } else if (filter == SampleFilter::adjacent_pair) {
      if (!has_adjacent_pair(loss_mask)) return "no two neighbouring supervised tokens";
    } else {
      const index_t least = min_loss_tokens.value_or(2 * block_size);
      if (supervised_in_whole_blocks(loss_mask, block_size) < least)
        return "fewer than " + std::to_string(least) + " supervised tokens in whole blocks";
    }
    return {};
  }
};

}  // namespace dflash
