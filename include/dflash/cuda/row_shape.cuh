#pragma once

#include <initializer_list>

#include "dflash/core/config.hpp"
#include "dflash/cuda/team.cuh"
#include "dflash/cuda/vector.cuh"

namespace dflash::cuda {

/// The most threads of a block that works on rows.
inline constexpr int most_row_threads = 512;

/// A row that a team holds in its registers, each member up to `vectors` vectors of it; with none,
/// a row of any length and address, whose numbers are read again when they are needed again.
template <int vectors>
struct HeldRow {
  /// f(i, c) for each vector i of this thread, the one from column c on.
  template <class Team, class F>
  __device__ __forceinline__ static void each(index_t columns, F f) {
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      const int c = (i * Team::size() + Team::member()) * wide;
      if (c < columns) f(i, index_t(c));
    }
  }
};

/// Whether rows of so many columns, at these addresses, consist of whole vectors.
template <class T>
bool are_vectors(index_t columns, std::initializer_list<const T*> data) {
  bool all = columns % wide == 0;
  for (const T* at : data) all = all && is_aligned(at, wide);
  return all;
}

/// f(HeldRow, the team, threads of a block) for rows of so many columns. Where a row takes a block,
/// its threads hold one of these numbers of vectors, the first with which it fits.
template <int... of_block, class F>
void for_row_shape(bool vectors, index_t columns, F f) {
  const auto held_by_block = [&](auto held, int each) {
    if (columns > index_t(each) * most_row_threads) return false;
    f(held, BlockTeam{}, int((columns + each * warp_size - 1) / (each * warp_size)) * warp_size);
    return true;
  };
  if (vectors && columns <= 16 * wide)
    f(HeldRow<1>{}, LaneTeam<16>{}, most_row_threads);
  else if (vectors && columns <= 32 * wide)
    f(HeldRow<1>{}, LaneTeam<32>{}, most_row_threads);
  else if (vectors && columns <= 128 * wide)
    f(HeldRow<4>{}, LaneTeam<32>{}, 128);
  else if (vectors && (held_by_block(HeldRow<of_block>{}, of_block * wide) || ...))
    return;
  else if (columns <= 1024)
    f(HeldRow<0>{}, LaneTeam<32>{}, 128);
  else
    f(HeldRow<0>{}, BlockTeam{}, 256);
}

}  // namespace dflash::cuda
