#pragma once

#include <algorithm>

#include "dflash/core/attention_rule.hpp"
#include "dflash/core/host_vector.hpp"

namespace dflash {

/// Part `index` of [0, total) cut into `parts` contiguous ranges whose sizes differ by at most one.
inline Range even_cut(index_t total, index_t parts, index_t index) {
  const index_t each = total / parts, more = total % parts;
  const index_t begin = index * each + std::min(index, more);
  return {begin, begin + each + (index < more ? 1 : 0)};
}

/// How the rows of one packed batch lie on the u * r ranks of a sequence group. Rank p has ring
/// index p / u and Ulysses index p % u. Context rows go to ring indices in stripes; the rows of a
/// ring index are cut into u contiguous ranges. Blocks are cut into u * r contiguous ranges.
struct SequenceLayout {
  index_t ulysses = 1, ring = 1;  // u, r

  index_t ranks() const { return ulysses * ring; }
  RingStripe stripe(index_t rank) const { return {ring, rank / ulysses}; }

  /// The context rows of a rank, as ascending ranges of the batch's rows.
  HostVector<Range> context_ranges(index_t rank, index_t total) const {
    const RingStripe here = stripe(rank);
    const Range own = even_cut(here.local(total), ulysses, rank % ulysses);
    HostVector<Range> ranges;
    for (index_t at = own.begin; at < own.end;) {
      const index_t run = std::min(own.end, (at / RingStripe::rows + 1) * RingStripe::rows) - at;
      const index_t row = here.global(at);
      if (!ranges.empty() && ranges.back().end == row) {
        ranges.back().end += run;
      } else {
        ranges.push_back({row, row + run});
      }
      at += run;
    }
    return ranges;
  }

  index_t context_rows(index_t rank, index_t total) const {
    return even_cut(stripe(rank).local(total), ulysses, rank % ulysses).size();
  }

  Range blocks(index_t rank, index_t total) const { return even_cut(total, ranks(), rank); }
  /// The blocks of all ranks of a rank's ring index.
  Range ring_blocks(index_t rank, index_t total) const {
    const index_t first = rank / ulysses * ulysses;
    return {blocks(first, total).begin, blocks(first + ulysses - 1, total).end};
  }
};

}  // namespace dflash
