// The head's cross entropy with its gradient. Arguments: rows, width, vocabulary, threads.

#include "dflash/cpu.hpp"
#include "rate.hpp"

namespace {

using namespace dflash;
using namespace dflash_benchmark;

void loss_and_gradient(benchmark::State& state) {
  const index_t rows = state.range(0), width = state.range(1), words = state.range(2);
  auto x = random(rows * width, 1), w = random(words * width, 2);
  std::vector<float> dx(x), nll(static_cast<std::size_t>(rows));
  std::vector<std::int32_t> label(nll.size(), 1);
  std::vector<std::uint8_t> correct(nll.size());
  CpuBackend<float> backend(int(state.range(3)));
  for (auto _ : state)
    linear_cross_entropy(
        backend, View<float, 2>{x.data(), {rows, width}}, View<float, 2>{w.data(), {words, width}},
        View<const std::int32_t, 1>{label.data(), {rows}}, View<float, 1>{nll.data(), {rows}},
        View<std::uint8_t, 1>{correct.data(), {rows}}, View<float, 2>{dx.data(), {rows, width}});
  set_rate(state, 4.0 * double(rows) * double(width) * double(words));
}

BENCHMARK(loss_and_gradient)
    ->ArgsProduct({{256, 1024}, {160}, {2048}, {1, 2}})
    ->ArgsProduct({{500}, {576}, {49152}, {1, 2}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
