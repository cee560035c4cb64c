#pragma once

#include <concepts>

namespace dflash {

/// A set of ranks that act together. Every call but rank() and size() is collective.
template <class C>
concept Communicator = std::movable<C> && requires(C& comm, int color) {
  { comm.rank() } -> std::same_as<int>;
  { comm.size() } -> std::same_as<int>;
  { comm.split(color) } -> std::same_as<C>;
  { comm.barrier() } -> std::same_as<void>;
};

/// One rank: every collective is the identity, so nothing needs a special case for one rank.
struct SingleProcess {
  int rank() const { return 0; }
  int size() const { return 1; }
  SingleProcess split(int) { return {}; }
  void barrier() {}
};

static_assert(Communicator<SingleProcess>);

}  // namespace dflash
