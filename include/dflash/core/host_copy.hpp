#pragma once

#include <type_traits>
#include <vector>

#include "dflash/core/tensor.hpp"

namespace dflash {

/// The elements on the host, as they are stored.
template <Backend B, class T, int Rank>
std::vector<std::remove_const_t<T>> downloaded(B& backend, View<T, Rank> there) {
  std::vector<std::remove_const_t<T>> here(static_cast<std::size_t>(there.size()));
  backend.download(there.data, here.data(), there.size());
  return here;
}

/// The elements on the host, in the type in which the backend sums.
template <Backend B, class T, int Rank>
auto host_copy(B& backend, View<T, Rank> there) {
  using Sum = typename B::accumulator_type;
  auto stored = downloaded(backend, there);
  if constexpr (std::is_same_v<std::remove_const_t<T>, Sum>) {
    return stored;
  } else {
    std::vector<Sum> values;
    values.reserve(stored.size());
    for (const auto x : stored) values.push_back(Sum(x));
    return values;
  }
}

}  // namespace dflash
