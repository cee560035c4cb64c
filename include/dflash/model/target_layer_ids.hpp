#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// The decoder layers whose outputs a draft sees by default: `count` of them, evenly spread over
/// layers 1 .. layers - 3 of a target with `layers` layers, halves rounded to even; a single one is
/// the middle layer. Few layers repeat ids.
inline std::vector<index_t> default_target_layer_ids(index_t layers, index_t count) {
  expects(layers >= 1 && count >= 1, "a target and a draft have at least one layer");
  if (count == 1) return {layers / 2};
  std::vector<index_t> ids;
  for (index_t i = 0; i < count; ++i) {
    const index_t numerator = i * (layers - 4), denominator = count - 1;
    // 1 + numerator / denominator, rounded without leaving the integers: a tie goes to even.
    const index_t floor = 1 + (numerator >= 0 ? numerator / denominator
                                              : -((-numerator + denominator - 1) / denominator));
    const index_t rest = 2 * (numerator - (floor - 1) * denominator);
    const bool up = rest > denominator || (rest == denominator && floor % 2 != 0);
    ids.push_back(floor + (up ? 1 : 0));
  }
  return ids;
}

/// Throws Error unless every id names a layer of a target with `layers` layers.
inline void check_target_layer_ids(const std::vector<index_t>& ids, index_t layers,
                                   const std::string& where) {
  if (ids.empty()) throw Error(where + ": target_layer_ids is empty");
  for (index_t id : ids)
    if (id < 0 || id >= layers)
      throw Error(where + ": target_layer_ids names layer " + std::to_string(id) +
                  ", but the target has layers 0 to " + std::to_string(layers - 1));
}

}  // namespace dflash
