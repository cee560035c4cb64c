// The products of a training step beside those of other libraries, in the same run: for each the
// rate, ours over the best of theirs, and ours over what the processor's registers reach.

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <functional>
#include <thread>

#include "dflash/cpu.hpp"
#include "machine_peak.hpp"
#include "rivals/rival.hpp"
#include "training_problem.hpp"

namespace {

using namespace dflash;
using namespace dflash_benchmark;

/// y = x w^T and what belongs to it.                       x (rows, inputs)  w (outputs, inputs)
struct Layer {
  std::string name;
  index_t rows, outputs, inputs;
  index_t times;                       // in a step
  bool narrow_inputs, narrow_outputs;  // whether the trainer has x, and dy, in bfloat16 if it can
};

std::vector<Layer> layers_of(const TrainingShape& shape) {
  const DFlashShape& s = shape.config.shape;
  const index_t context = shape.tokens * shape.batch,
                blocks = shape.anchors * shape.config.block_size * shape.batch,
                queries = s.heads * s.head_dim, keys = s.kv_heads * s.head_dim,
                layers = shape.config.layers,
                captured = index_t(shape.config.target_layer_ids.size());
  return {{"fc", context, s.hidden, captured * s.hidden, 1, true, false},
          {"q", blocks, queries, s.hidden, layers, true, false},
          {"k, v of the context", context, keys, s.hidden, 2 * layers, true, false},
          {"k, v of blocks", blocks, keys, s.hidden, 2 * layers, true, false},
          {"o", blocks, s.hidden, queries, layers, false, false},
          {"gate, up", blocks, s.intermediate, s.hidden, 2 * layers, true, true},
          {"down", blocks, s.hidden, s.intermediate, layers, true, false}};
}

enum class Form { forward, frozen, input, weight };
constexpr const char* form_names[] = {"y = x w^T", "frozen w", "dx += dy w", "dw += dy^T x"};

using Floats = CpuBackend<float>::Buffer<float>;
using Halves = CpuBackend<float>::Buffer<bfloat16>;

Floats numbers(CpuBackend<float>& backend, index_t n, std::uint64_t key) {
  const Random random(key);
  auto x = backend.allocate<float>(n);
  for (index_t i = 0; i < n; ++i) x.data()[i] = float(random.uniform(std::uint64_t(i)) - 0.5);
  return x;
}

Halves rounded(CpuBackend<float>& backend, const Floats& x) {
  auto y = backend.allocate<bfloat16>(x.size());
  for (index_t i = 0; i < x.size(); ++i) y.data()[i] = bfloat16(x.data()[i]);
  return y;
}

struct Operands {
  const Layer& layer;
  Floats x, w, y;
  Halves x16, w16, y16;

  Operands(CpuBackend<float>& backend, const Layer& l, bool bf16)
      : layer(l),
        x(numbers(backend, l.rows * l.inputs, 1)),
        w(numbers(backend, l.outputs * l.inputs, 2)),
        y(numbers(backend, l.rows * l.outputs, 3)) {
    if (!bf16) return;
    x16 = rounded(backend, x), w16 = rounded(backend, w), y16 = rounded(backend, y);
  }
  /// As a trainer in bf16 has them.
  InRows<float> stored_inputs() {
    if (layer.narrow_inputs) return View<bfloat16, 2>{x16.data(), {layer.rows, layer.inputs}};
    return inputs();
  }
  InRows<float> stored_outputs() {
    if (layer.narrow_outputs) return View<bfloat16, 2>{y16.data(), {layer.rows, layer.outputs}};
    return outputs();
  }
  View<float, 2> inputs() { return {x.data(), {layer.rows, layer.inputs}}; }
  View<float, 2> weights() { return {w.data(), {layer.outputs, layer.inputs}}; }
  View<float, 2> outputs() { return {y.data(), {layer.rows, layer.outputs}}; }

  template <class T>
  Product<T> product(Form form, const T* x_, const T* w_, const T* y_) {
    const index_t n = layer.rows, o = layer.outputs, i = layer.inputs;
    if (form == Form::input) return {false, false, true, n, i, o, y_, w_, x.data()};
    if (form == Form::weight) return {true, false, true, o, i, n, y_, x_, w.data()};
    return {false, true, false, n, o, i, x_, w_, y.data()};
  }
};

/// Seconds of the fastest call of each, taken in turns.
std::vector<double> fastest(const std::vector<std::function<void()>>& calls, double budget) {
  std::vector<double> best(calls.size(), 1e30);
  for (int round = 0; round < 3; ++round)
    for (std::size_t c = 0; c < calls.size(); ++c) {
      // Libraries' threads go on looking for work for a while after a product.
      if (calls.size() > 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
      if (round == 0) calls[c]();
      const auto start = std::chrono::steady_clock::now();
      do best[c] = std::min(best[c], seconds_of(calls[c]));
      while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
             budget / 3);
    }
  return best;
}

/// A library with its way to take factors.
struct Contestant {
  std::string name;
  void (*multiply)(const Product<float>&);
  void (*multiply_bf16)(const Product<bfloat16>&);
};

struct Options {
  std::string shape = "smollm2", precision = "fp32";
  int threads = 1;
  double seconds = 0.1;
};

void run(const Options& options) {
  const CpuPrecision precision = cpu_precisions.named(options.precision);
  const bool bf16 = precision == CpuPrecision::bf16;
  CpuBackend<float> backend(options.threads, precision);
  std::vector<Contestant> others;
  for (const Rival& rival : rivals()) {
    rival.use_threads(options.threads);
    if (!bf16) others.push_back({rival.name, rival.multiply, nullptr});
    if (bf16 && rival.multiply_rounded != nullptr)
      others.push_back({rival.name, rival.multiply_rounded, nullptr});
    if (bf16 && rival.multiply_bf16 != nullptr)
      others.push_back({rival.name + " *", nullptr, rival.multiply_bf16});
  }
  const double peak = peak_flops(backend, bf16);
  std::printf("%s, %s, %s, threads %d; registers reach %.0f GFLOP/s\n", options.shape.c_str(),
              options.precision.c_str(), std::string(name_of(backend.path())).c_str(),
              options.threads, peak / 1e9);
  if (bf16)
    std::printf(
        "factors are rounded from float; + those rows that the trainer keeps in bf16 are so "
        "already; * all are, not counted as best\n");
  std::printf("%-20s %-18s %-13s %8s", "product", "rows x outputs x k", "", "dflash");
  if (bf16) std::printf(" %8s", "dflash +");
  for (const Contestant& other : others) std::printf(" %8s", other.name.c_str());
  std::printf("  ours/best   of peak   (GFLOP/s)\n");

  const std::size_t own = bf16 ? 2 : 1;
  std::vector<double> step(own + others.size());
  for (const Layer& layer : layers_of(shape_named(options.shape))) {
    Operands data(backend, layer, bf16);
    const auto frozen = freeze(backend, data.weights());
    for (Form form : {Form::forward, Form::frozen, Form::input, Form::weight}) {
      const auto ours = [&](InRows<float> x, InRows<float> dy) {
        if (form == Form::forward) linear(backend, x, data.weights(), data.outputs());
        if (form == Form::frozen) linear(backend, x, frozen, data.outputs());
        if (form == Form::input) linear_backward_input(backend, dy, data.weights(), data.inputs());
        if (form == Form::weight) linear_backward_weight(backend, dy, x, data.weights());
      };
      std::vector<std::function<void()>> calls{[&] { ours(data.inputs(), data.outputs()); }};
      if (bf16) calls.push_back([&] { ours(data.stored_inputs(), data.stored_outputs()); });
      for (const Contestant& other : others)
        calls.push_back([&] {
          if (other.multiply_bf16 != nullptr)
            other.multiply_bf16(
                data.product(form, data.x16.data(), data.w16.data(), data.y16.data()));
          else
            other.multiply(data.product<float>(form, data.x.data(), data.w.data(), data.y.data()));
        });
      const auto seconds = fastest(calls, options.seconds);
      const double operations = 2e-9 * double(layer.rows * layer.outputs * layer.inputs);
      char size[64];
      std::snprintf(size, sizeof size, "%ld x %ld x %ld", long(layer.rows), long(layer.outputs),
                    long(layer.inputs));
      std::printf("%-20s %-18s %-13s", layer.name.c_str(), size, form_names[int(form)]);
      double best = 1e30;
      for (std::size_t c = 0; c < seconds.size(); ++c) {
        std::printf(" %8.1f", operations / seconds[c]);
        if (c >= own && others[c - own].multiply != nullptr) best = std::min(best, seconds[c]);
        if (form != Form::frozen) step[c] += double(layer.times) * seconds[c];
      }
      std::printf("  %9.2f  %8.2f\n", best / seconds[0], 1e9 * operations / seconds[0] / peak);
    }
  }
  std::printf("all products of a step but the head's: dflash %.4f s", step[0]);
  if (bf16) std::printf(", dflash + %.4f s (%.2f times)", step[1], step[1] / step[0]);
  for (std::size_t c = 0; c < others.size(); ++c)
    std::printf(", %s %.4f s (%.2f times)", others[c].name.c_str(), step[own + c],
                step[own + c] / step[0]);
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("The products of a training step, ours and others'");
  Options options;
  app.add_option("--shape", options.shape, "tiny, smollm2 or qwen3-0.6b")->capture_default_str();
  app.add_option("--precision", options.precision, "fp32, bf16x3 or bf16")->capture_default_str();
  app.add_option("--threads", options.threads)->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--seconds", options.seconds, "for each product")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gemm: %s\n", error.what());
    return 1;
  }
}
