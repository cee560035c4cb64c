#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "dflash/core/tensor.hpp"

/// What ranks hold and send in the communicator suite: every rank knows what every other one holds,
/// so it can say alone what it must get.
namespace communicator_suite {

using dflash::index_t;
using Counts = std::vector<index_t>;

/// Element i of what a rank holds.
template <class T>
T value(int rank, index_t i, int salt = 0) {
  std::uint64_t x = std::uint64_t(i) * 0x9e3779b97f4a7c15u +
                    std::uint64_t(rank + 1) * 0xd1b54a32d192ed03u + std::uint64_t(salt);
  x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9u;
  x ^= x >> 32;
  if constexpr (std::is_floating_point_v<T>) {
    return T(double(std::int64_t(x)) * 0x1p-63 * std::exp2(double(x % 16)));
  } else if constexpr (std::is_integral_v<T>) {
    return T(x % 100000);
  } else {
    return std::bit_cast<T>(std::uint16_t(x));
  }
}

template <class T>
std::vector<T> values(int rank, index_t n, int salt = 0) {
  std::vector<T> all;
  for (index_t i = 0; i < n; ++i) all.push_back(value<T>(rank, i, salt));
  return all;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Elements in a backend's memory.
template <class B, class T>
class Array {
 public:
  Array(B& backend, const std::vector<T>& host)
      : backend_(&backend), there_(dflash::uploaded(backend, host.data(), index_t(host.size()))) {}

  dflash::View<T, 1> view() { return there_.view(); }
  std::vector<T> host() const {
    std::vector<T> values(std::size_t(there_.size()));
    backend_->download(there_.view().data, values.data(), there_.size());
    return values;
  }

 private:
  B* backend_;
  dflash::Tensor<B, T, 1> there_;
};

template <class T>
dflash::View<T, 1> view(std::vector<T>& v) {
  return {v.data(), {index_t(v.size())}};
}
template <class T>
dflash::View<const T, 1> view(const std::vector<T>& v) {
  return {v.data(), {index_t(v.size())}};
}

inline index_t sum(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), index_t(0));
}

template <class T>
std::vector<T> part(const std::vector<T>& all, const Counts& counts, int p) {
  const auto begin = all.begin() + std::accumulate(counts.begin(), counts.begin() + p, index_t(0));
  return {begin, begin + counts[std::size_t(p)]};
}

/// What the sum over `ranks` ranks of n elements must be, added in the order of the ranks.
template <class T>
std::vector<T> sum_of_ranks(int ranks, index_t n, int salt) {
  auto total = values<T>(0, n, salt);
  for (int r = 1; r < ranks; ++r)
    for (index_t i = 0; i < n; ++i)
      total[std::size_t(i)] = T(total[std::size_t(i)] + value<T>(r, i, salt));
  return total;
}

/// How many elements one rank sends to another in a round.
struct Pattern {
  int round;

  index_t operator()(int from, int to) const {
    switch (round) {
      case 0:
        return 3;  // even
      case 1:
        return (from * 7 + to * 3 + 5) % 6;  // uneven, some zero
      case 2:
        return from == 1 && to == 0 ? 9 : 0;  // one sends, all others are silent
      case 3:
        return 0;
      default:
        return 500 * (to + 1) + 37 * from;
    }
  }
  Counts sent(int from, int ranks) const {
    Counts counts;
    for (int to = 0; to < ranks; ++to) counts.push_back((*this)(from, to));
    return counts;
  }
  Counts received(int to, int ranks) const {
    Counts counts;
    for (int from = 0; from < ranks; ++from) counts.push_back((*this)(from, to));
    return counts;
  }
};
constexpr int patterns = 5;

/// One all-to-all of a pattern: its buffers and what must come out.
template <class B, class T>
struct Exchange {
  Exchange(B& backend, int rank, int ranks, Pattern pattern, int salt)
      : send(pattern.sent(rank, ranks)),
        receive(pattern.received(rank, ranks)),
        in(backend, values<T>(rank, sum(send), salt)),
        out(backend, values<T>(99, sum(receive))) {
    for (int from = 0; from < ranks; ++from) {
      const Counts theirs = pattern.sent(from, ranks);
      const auto block = part(values<T>(from, sum(theirs), salt), theirs, rank);
      expected.insert(expected.end(), block.begin(), block.end());
    }
  }
  bool right() const { return same_bits(out.host(), expected); }

  Counts send, receive;
  Array<B, T> in, out;
  std::vector<T> expected;
};

/// One reduce-scatter whose counts are those that a pattern sends.
template <class B, class T>
struct Sum {
  Sum(B& backend, int on_rank, int ranks, Pattern pattern, int salt)
      : rank(on_rank),
        counts(pattern.sent(1, ranks)),
        in(backend, values<T>(rank, sum(counts), salt)),
        out(backend, values<T>(99, counts[std::size_t(rank)])),
        expected(part(sum_of_ranks<T>(ranks, sum(counts), salt), counts, rank)) {}

  template <class C>
  auto start(C& comm, B& backend) {
    const Counts gone = counts;  // before the sum is there
    return comm.start_reduce_scatter_sum(backend, in.view(), gone, out.view());
  }
  template <class C>
  auto start_in_place(C& comm, B& backend) {
    const index_t begin = std::accumulate(counts.begin(), counts.begin() + rank, index_t(0));
    return comm.start_reduce_scatter_sum(
        backend, in.view(), counts, in.view().rows({begin, begin + counts[std::size_t(rank)]}));
  }
  bool right() const { return same_bits(out.host(), expected); }
  bool right_in_place() const { return same_bits(part(in.host(), counts, rank), expected); }

  int rank;
  Counts counts;
  Array<B, T> in, out;
  std::vector<T> expected;
};

}  // namespace communicator_suite
