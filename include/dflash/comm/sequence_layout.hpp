#pragma once

#include <algorithm>
#include <vector>

#include "dflash/core/config.hpp"

namespace dflash {

/// Part `index` of [0, total) cut into `parts` contiguous ranges whose sizes differ by at most one.
inline Range even_cut(index_t total, index_t parts, index_t index) {
  const index_t each = total / parts, more = total % parts;
  const index_t begin = index * each + std::min(index, more);
  return {begin, begin + each + (index < more ? 1 : 0)};
}

/// How the rows of one packed batch lie on the u * r ranks of a sequence group. Rank p has ring
/// index p / u and Ulysses index p % u. Context row s belongs to ring index (s / 64) % r; the rows
/// of a ring index are cut into u contiguous ranges. Blocks are cut into u * r contiguous ranges.
struct SequenceLayout {
  static constexpr index_t stripe = 64;  // context rows
  index_t ulysses = 1, ring = 1;         // u, r

  index_t ranks() const { return ulysses * ring; }

  /// Rows of ring index `i` among the first `total` context rows.
  index_t ring_rows(index_t i, index_t total) const {
    const index_t turn = stripe * ring, rest = total % turn;
    return total / turn * stripe + std::clamp<index_t>(rest - i * stripe, 0, stripe);
  }

  /// The context row that is number `at` of ring index `i`.
  index_t context_row(index_t i, index_t at) const {
    return (at / stripe * ring + i) * stripe + at % stripe;
  }

  /// The context rows of a rank, as ascending ranges of the batch's rows.
  std::vector<Range> context_ranges(index_t rank, index_t total) const {
    const index_t i = rank / ulysses;
    const Range own = even_cut(ring_rows(i, total), ulysses, rank % ulysses);
    std::vector<Range> ranges;
    for (index_t at = own.begin; at < own.end;) {
      const index_t here = std::min(own.end, (at / stripe + 1) * stripe) - at;
      const index_t row = context_row(i, at);
      if (!ranges.empty() && ranges.back().end == row) {
        ranges.back().end += here;
      } else {
        ranges.push_back({row, row + here});
      }
      at += here;
    }
    return ranges;
  }

  Range blocks(index_t rank, index_t total) const { return even_cut(total, ranks(), rank); }
};

}  // namespace dflash
