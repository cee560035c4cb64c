#pragma once

#include "dflash/comm/share.hpp"

namespace dflash {

/// Bytes of a number as a backend keeps it, and as it adds up.
struct NumberBytes {
  index_t value = 4, sum = 4;

  template <class B>
  static constexpr NumberBytes of() {
    return {sizeof(typename B::value_type), sizeof(typename B::accumulator_type)};
  }
};

/// Bytes that one rank sends in one collective of its group, as the communicators count them (see
/// Traffic): of n elements, `own` of them this rank's part, with `bytes` each.
inline index_t all_gather_bytes(Share rank, index_t own, index_t bytes) {
  return bytes * own * (rank.ranks - 1);
}
inline index_t reduce_scatter_bytes(index_t n, index_t own, index_t bytes) {
  return bytes * (n - own);
}
inline index_t all_reduce_bytes(Share rank, index_t n, index_t bytes) {
  const index_t own = rank.of(n).size();
  return reduce_scatter_bytes(n, own, bytes) + all_gather_bytes(rank, own, bytes);
}

}  // namespace dflash
