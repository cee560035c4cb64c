// The three forms of a linear layer's product beside Eigen's. Arguments: rows, outputs, inputs,
// threads.

#include <Eigen/Core>

#include "dflash/cpu.hpp"
#include "rate.hpp"

namespace {

using namespace dflash;
using namespace dflash_benchmark;

struct Layer {
  index_t n, o, i;
  std::vector<float> x, w, y;
  explicit Layer(const benchmark::State& state)
      : n(state.range(0)),
        o(state.range(1)),
        i(state.range(2)),
        x(random(n * i, 1)),
        w(random(o * i, 2)),
        y(random(n * o, 3)) {}
  View<float, 2> inputs() { return {x.data(), {n, i}}; }
  View<float, 2> weights() { return {w.data(), {o, i}}; }
  View<float, 2> outputs() { return {y.data(), {n, o}}; }
  double operations() const { return 2.0 * double(n) * double(o) * double(i); }
};

void forward(benchmark::State& state) {
  Layer layer(state);
  CpuBackend<float> backend(int(state.range(3)));
  for (auto _ : state) linear(backend, layer.inputs(), layer.weights(), layer.outputs());
  set_rate(state, layer.operations());
}

void forward_frozen(benchmark::State& state) {
  Layer layer(state);
  CpuBackend<float> backend(int(state.range(3)));
  const auto frozen = freeze(backend, layer.weights());
  for (auto _ : state) linear(backend, layer.inputs(), frozen, layer.outputs());
  set_rate(state, layer.operations());
}

void backward_input(benchmark::State& state) {
  Layer layer(state);
  CpuBackend<float> backend(int(state.range(3)));
  for (auto _ : state)
    linear_backward_input(backend, layer.outputs(), layer.weights(), layer.inputs());
  set_rate(state, layer.operations());
}

void backward_weight(benchmark::State& state) {
  Layer layer(state);
  CpuBackend<float> backend(int(state.range(3)));
  for (auto _ : state)
    linear_backward_weight(backend, layer.outputs(), layer.inputs(), layer.weights());
  set_rate(state, layer.operations());
}

void forward_eigen(benchmark::State& state) {
  Layer layer(state);
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Map<Matrix> x(layer.x.data(), layer.n, layer.i), w(layer.w.data(), layer.o, layer.i);
  Eigen::Map<Matrix> y(layer.y.data(), layer.n, layer.o);
  for (auto _ : state) {
    y.noalias() = x * w.transpose();
    benchmark::DoNotOptimize(layer.y.data());
  }
  set_rate(state, layer.operations());
}

void shapes(benchmark::internal::Benchmark* b) {
  for (auto [n, o, i] : {std::array<long, 3>{512, 512, 512},
                         {2048, 416, 160},
                         {2048, 160, 416},
                         {2048, 128, 160},
                         {2048, 2048, 160},
                         {2048, 1536, 576},
                         {1024, 4096, 4096},
                         {16, 2048, 160},
                         {1, 2048, 160},
                         {1, 4096, 4096}})
    for (long threads : {1, 2}) b->Args({n, o, i, threads});
  b->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK(forward)->Apply(shapes);
BENCHMARK(forward_frozen)->Apply(shapes);
BENCHMARK(backward_input)->Apply(shapes);
BENCHMARK(backward_weight)->Apply(shapes);
BENCHMARK(forward_eigen)->Apply(shapes);

}  // namespace
