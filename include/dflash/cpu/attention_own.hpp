#pragma once

#include <algorithm>

#include "dflash/cpu/attention_panels.hpp"
#include "dflash/cpu/attention_tile.hpp"

/// Own keys of blocks so small that several share a panel: those of all of them are multiplied
/// with all rows of the panel, and what does not belong together is left out.
namespace dflash::detail {

/// How many slots the own keys of small blocks take; none if blocks are not small.
struct OwnSlots {
  bool small;
  index_t pitch = 0;            // from one block to the next
  index_t tile = 0, panel = 0;  // of a tile and of a panel, at most

  template <class Pitch>
  OwnSlots(const AttentionPlan& plan, index_t lanes, Pitch pitch_of)
      : small(plan.block_size() * plan.group() < lanes) {
    if (!small) return;
    pitch = pitch_of(plan.block_size());
    tile = plan.blocks() * pitch;
    panel = std::min(plan.blocks(), lanes / std::max<index_t>(plan.block_size(), 1) + 2) * pitch;
  }
};

/// Blocks of a tile that have keys of their own here.
inline Range blocks_with_keys(const QueryTile& tile) {
  const index_t size = tile.mask->block_size;
  Range some{0, tile.blocks.size()};
  while (some.begin < some.end && tile.own[some.begin * size].size() <= 0) ++some.begin;
  while (some.begin < some.end && tile.own[(some.end - 1) * size].size() <= 0) --some.end;
  return some;
}

/// Which of some blocks, in slots `pitch` apart, rows of a tile belong to.
template <class T>
struct PanelBlocks {
  Range blocks;
  index_t pitch;
  alignas(64) T block_of[most_lanes];

  PanelBlocks(const QueryTile& tile, Range with_keys, index_t pitch_, Range rows) : pitch(pitch_) {
    const index_t each = tile.heads.size() * tile.mask->block_size;
    blocks = {std::max(rows.begin / each, with_keys.begin),
              std::min((rows.end - 1) / each + 1, with_keys.end)};
    std::fill_n(block_of, most_lanes, T(-1));
    for (index_t b = blocks.begin; b < blocks.end; ++b)
      std::fill(block_of + std::max(b * each - rows.begin, index_t(0)),
                block_of + std::min((b + 1) * each, rows.end) - rows.begin, T(b - blocks.begin));
  }
  index_t slots() const { return blocks.size() * pitch; }
};

/// score(j, lane) = wide(slot j of the lane's block, lane), j < size.     score (size, score_row)
template <int Bytes, class T>
[[gnu::always_inline]] inline void gather_blocks(const PanelBlocks<T>& of, index_t size,
                                                 const T* wide, T* score, index_t score_row) {
  using P = PanelVectors<T, Bytes>;
  using Register = typename P::Register;
  using Memory = typename P::Memory;
  for (index_t lane = 0; lane < P::lanes; lane += P::V::lanes) {
    const Register block_of = *(const Memory*)(of.block_of + lane);
    for (index_t j = 0; j < size; ++j) {
      Register s = *(const Memory*)(wide + j * P::lanes + lane);
      for (index_t b = 1; b < of.blocks.size(); ++b) {
        const Register other = *(const Memory*)(wide + (b * of.pitch + j) * P::lanes + lane),
                       block = Register{} + T(b);
        s = block_of == block ? other : s;
      }
      *(Memory*)(score + j * score_row + lane) = s;
    }
  }
}

/// The other way, zeros in the lanes of other blocks and in slots outside [slots).
template <int Bytes, class T>
[[gnu::always_inline]] inline void spread_blocks(const PanelBlocks<T>& of, Range slots,
                                                 const T* score, index_t score_row, T* wide) {
  using P = PanelVectors<T, Bytes>;
  using Register = typename P::Register;
  using Memory = typename P::Memory;
  for (index_t lane = 0; lane < P::lanes; lane += P::V::lanes) {
    const Register block_of = *(const Memory*)(of.block_of + lane);
    for (index_t j = 0; j < of.pitch; ++j) {
      Register p{};
      if (j >= slots.begin && j < slots.end) p = *(const Memory*)(score + j * score_row + lane);
      for (index_t b = 0; b < of.blocks.size(); ++b) {
        const Register block = Register{} + T(b), none{};
        *(Memory*)(wide + (b * of.pitch + j) * P::lanes + lane) = block_of == block ? p : none;
      }
    }
  }
}

}  // namespace dflash::detail
