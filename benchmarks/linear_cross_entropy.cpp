// The head's cross entropy with its gradient. Arguments: rows, width, vocabulary, threads,
// precision (0 fp32, 1 bf16x3, 2 bf16). extra_mb: the process' peak memory less what inputs and
// outputs take.

#include <sys/resource.h>

#include "dflash/cpu.hpp"
#include "rate.hpp"

namespace {

using namespace dflash;
using namespace dflash_benchmark;

double peak_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) / 1024;
}

void loss_and_gradient(benchmark::State& state) {
  const index_t rows = state.range(0), width = state.range(1), words = state.range(2);
  auto x = random(rows * width, 1), w = random(words * width, 2);
  std::vector<float> dx(x), nll(static_cast<std::size_t>(rows));
  std::vector<std::int32_t> label(nll.size(), 1);
  std::vector<std::uint8_t> correct(nll.size());
  CpuBackend<float> backend(int(state.range(3)), CpuPrecision(state.range(4)));
  const double before = peak_mb();
  for (auto _ : state)
    linear_cross_entropy(
        backend, View<float, 2>{x.data(), {rows, width}}, View<float, 2>{w.data(), {words, width}},
        View<const std::int32_t, 1>{label.data(), {rows}}, View<float, 1>{nll.data(), {rows}},
        View<std::uint8_t, 1>{correct.data(), {rows}}, View<float, 2>{dx.data(), {rows, width}});
  state.counters["extra_mb"] = peak_mb() - before;
  set_rate(state, 4.0 * double(rows) * double(width) * double(words));
}

BENCHMARK(loss_and_gradient)
    // The largest first: memory is given back late.
    ->ArgsProduct({{960}, {1024}, {32768}, {1, 2}, {0, 2}})
    ->ArgsProduct({{448}, {576}, {49152}, {1, 2}, {0, 2}})
    ->ArgsProduct({{1792}, {160}, {2048}, {1, 2}, {0, 2}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
