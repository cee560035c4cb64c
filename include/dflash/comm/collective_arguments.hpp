#pragma once

#include <array>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "dflash/comm/sequence_layout.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/tensor.hpp"

/// What every communicator checks before it moves anything: an Error names the collective and the
/// numbers that do not fit.
namespace dflash::detail {

using Counts = std::span<const index_t>;

inline void check_counts(const char* collective, const char* which, Counts counts, int ranks,
                         index_t elements) {
  const auto fail = [&](const std::string& what) {
    throw Error(std::string(collective) + ": " + what);
  };
  if (index_t(counts.size()) != ranks)
    fail(std::to_string(counts.size()) + " " + which + " counts for " + std::to_string(ranks) +
         " ranks");
  index_t sum = 0;
  for (std::size_t p = 0; p < counts.size(); ++p) {
    if (counts[p] < 0)
      fail("the " + std::string(which) + " count of rank " + std::to_string(p) + " is " +
           std::to_string(counts[p]));
    sum += counts[p];
  }
  if (sum != elements)
    fail("the " + std::string(which) + " counts add up to " + std::to_string(sum) +
         ", the buffer holds " + std::to_string(elements) + " elements");
}

/// `same_start`: the two may begin at the same element (a collective in place).
template <class T>
void check_apart(const char* collective, In<T, 1> in, View<T, 1> out, bool same_start = false) {
  if (in.size() == 0 || out.size() == 0 || (same_start && in.data == out.data)) return;
  const std::less<const T*> before;
  if (before(in.data, out.data + out.size()) && before(out.data, in.data + in.size()))
    throw Error(std::string(collective) + ": in and out overlap");
}

template <class T>
void check_all_to_all(In<T, 1> in, Counts send, View<T, 1> out, Counts receive, int rank,
                      int ranks) {
  check_counts("all_to_all", "send", send, ranks, in.size());
  check_counts("all_to_all", "receive", receive, ranks, out.size());
  const index_t sent = send[std::size_t(rank)], expected = receive[std::size_t(rank)];
  if (sent != expected)
    throw Error("all_to_all: rank " + std::to_string(rank) + " sends " + std::to_string(sent) +
                " elements to itself and expects " + std::to_string(expected));
  check_apart<T>("all_to_all", in, out);
}

inline void check_own_part(const char* collective, Counts counts, int rank, index_t elements) {
  if (counts[std::size_t(rank)] != elements)
    throw Error(std::string(collective) + ": the count of rank " + std::to_string(rank) + " is " +
                std::to_string(counts[std::size_t(rank)]) + ", its buffer holds " +
                std::to_string(elements) + " elements");
}

inline index_t offset_of(Counts counts, int rank) {
  index_t before = 0;
  for (int p = 0; p < rank; ++p) before += counts[std::size_t(p)];
  return before;
}

/// `out` is where this rank's own part of the sum goes: apart from `in`, or just that part of it.
template <class T>
void check_reduce_scatter(In<T, 1> in, Counts counts, View<T, 1> out, int rank, int ranks) {
  check_counts("reduce_scatter_sum", "part", counts, ranks, in.size());
  check_own_part("reduce_scatter_sum", counts, rank, out.size());
  const index_t own = offset_of(counts, rank);
  if (in.data + own != out.data) check_apart<T>("reduce_scatter_sum", in, out);
}

/// `in` is apart from `out`, or just this rank's part of it.
template <class T>
void check_all_gather(In<T, 1> in, Counts counts, View<T, 1> out, int rank, int ranks) {
  check_counts("all_gather", "part", counts, ranks, out.size());
  check_own_part("all_gather", counts, rank, in.size());
  const index_t own = offset_of(counts, rank);
  if (in.data != out.data + own) check_apart<T>("all_gather", in, out);
}

inline void check_root(int root, int ranks) {
  if (root < 0 || root >= ranks)
    throw Error("broadcast: root " + std::to_string(root) + " is none of " + std::to_string(ranks) +
                " ranks");
}

inline void check_color(int color) {
  if (color < 0) throw Error("split: color " + std::to_string(color) + " is negative");
}

/// Elements that go to other ranks.
inline index_t sent_to_others(Counts counts, int rank) {
  index_t sum = 0;
  for (std::size_t p = 0; p < counts.size(); ++p) sum += int(p) == rank ? 0 : counts[p];
  return sum;
}

/// The slices of n elements that the ranks add up in an all_reduce.
inline std::vector<index_t> even_counts(index_t n, int ranks) {
  std::vector<index_t> counts;
  for (int p = 0; p < ranks; ++p) counts.push_back(even_cut(n, ranks, p).size());
  return counts;
}

/// out = sources[0] + sources[1] + ..., added in this order by every communicator, so that the bits
/// depend on neither the communicator nor the rank. `out` may be one of the sources.
template <class T>
void sum_in_order(std::span<const T* const> sources, index_t n, T* out) {
  constexpr index_t tile = 1024;
  std::array<T, tile> sum;
  for (index_t begin = 0; begin < n; begin += tile) {
    const index_t count = std::min(tile, n - begin);
    std::copy_n(sources[0] + begin, count, sum.data());
    for (const T* source : sources.subspan(1))
      for (index_t i = 0; i < count; ++i)
        sum[std::size_t(i)] = T(sum[std::size_t(i)] + source[begin + i]);
    std::copy_n(sum.data(), count, out + begin);
  }
}

}  // namespace dflash::detail
