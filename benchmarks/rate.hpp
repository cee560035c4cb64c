#pragma once

#include <benchmark/benchmark.h>

#include <vector>

#include "dflash/core/random.hpp"

namespace dflash_benchmark {

using dflash::index_t;

inline std::vector<float> random(index_t n, std::uint64_t key) {
  const dflash::Random numbers(key);
  std::vector<float> x(static_cast<std::size_t>(n));
  for (index_t i = 0; i < n; ++i)
    x[static_cast<std::size_t>(i)] = float(numbers.uniform(std::uint64_t(i)) - 0.5);
  return x;
}

/// Reports operations per second of wall time.
inline void set_rate(benchmark::State& state, double operations) {
  state.counters["flops"] =
      benchmark::Counter(operations * double(state.iterations()), benchmark::Counter::kIsRate);
}

}  // namespace dflash_benchmark
