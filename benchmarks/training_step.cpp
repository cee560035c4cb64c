// One whole training step, again and again on the same made-up samples: shard, forward, loss,
// backward, clip and AdamW.
//   training_step --shape {tiny,smollm2,qwen3-0.6b} --threads N --precision {fp32,bf16x3,bf16}
//   --steps M
//     [--json]

#include <CLI/CLI.hpp>
#include <cstdio>

#include "machine_peak.hpp"
#include "training_loop.hpp"

using namespace dflash;
using namespace dflash_benchmark;

namespace {

struct Options {
  std::string shape = "tiny", precision = "fp32";
  int threads = 1, steps = 10, warm_up = 2;
  std::string write_inputs;
  bool json = false;

  void add_to(CLI::App& app) {
    app.add_option("--shape", shape, "tiny, smollm2 or qwen3-0.6b")->capture_default_str();
    app.add_option("--precision", precision, "of the products")
        ->check(CLI::IsMember(cpu_precisions.names()))
        ->capture_default_str();
    app.add_option("--threads", threads)->capture_default_str()->check(CLI::PositiveNumber);
    app.add_option("--steps", steps, "steps that are timed")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    app.add_option("--warm-up", warm_up, "steps before them")
        ->capture_default_str()
        ->check(CLI::NonNegativeNumber);
    app.add_option("--write-inputs", write_inputs,
                   "write weights and samples to this file instead, for other programs");
    app.add_flag("--json", json, "one JSON object");
  }
};

nlohmann::json report(const Options& options, const std::vector<Measured>& steps, double first_loss,
                      double peak_mb) {
  return {{"shape", options.shape},
          {"threads", options.threads},
          {"precision", options.precision},
          {"steps", options.steps},
          {"median_s", median(steps, &Measured::step)},
          {"shard_s", median(steps, &Measured::shard)},
          {"forward_s", median(steps, &Measured::forward)},
          {"head_s", median(steps, &Measured::head)},
          {"backward_s", median(steps, &Measured::backward)},
          {"optimizer_s", median(steps, &Measured::optimizer)},
          {"peak_mb", peak_mb},
          {"loss", steps.back().loss},
          {"first_loss", first_loss},
          {"allocations", steps.back().allocations},
          {"page_faults", steps.back().page_faults}};
}

void print_table(B& backend, const Trainer& trainer, const nlohmann::json& r, index_t parameters) {
  const double peak = peak_flops(backend, backend.precision() == CpuPrecision::bf16),
               bandwidth = peak_bandwidth(backend);
  const TrainingOperations operations = trainer.operations();
  std::printf("%s, %d threads, %s: peak %.0f GFLOP/s, %.1f GB/s\n",
              r["shape"].get<std::string>().c_str(), backend.threads(),
              r["precision"].get<std::string>().c_str(), peak / 1e9, bandwidth / 1e9);
  const auto line = [&](const char* name, double seconds, double flops) {
    std::printf("%-10s %9.2f ms", name, seconds * 1e3);
    if (flops > 0)
      std::printf(" %8.1f GFLOP/s %5.1f %% of the peak", flops / seconds / 1e9,
                  100 * flops / seconds / peak);
    std::printf("\n");
  };
  line("shard", r["shard_s"], 0);
  line("forward", r["forward_s"], operations.forward);
  line("head", r["head_s"], operations.head);
  line("backward", r["backward_s"], operations.backward);
  // The norm reads the gradient; the step reads it again, and reads and writes weight and moments.
  const double bytes = 8.0 * sizeof(float) * double(parameters), seconds = r["optimizer_s"];
  std::printf("%-10s %9.2f ms %8.1f GB/s    %5.1f %% of the peak\n", "optimizer", seconds * 1e3,
              bytes / seconds / 1e9, 100 * bytes / seconds / bandwidth);
  line("step", r["median_s"], operations.all());
  std::printf(
      "peak memory %.0f MB, loss %.6f, first %.6f; last step: %s allocations, %s page faults\n",
      r["peak_mb"].get<double>(), r["loss"].get<double>(), r["first_loss"].get<double>(),
      r["allocations"].dump().c_str(), r["page_faults"].dump().c_str());
}

void run(const Options& options) {
  B backend(options.threads, cpu_precisions.named(options.precision));
  TrainingProblem problem(backend, shape_named(options.shape));
  if (!options.write_inputs.empty()) return problem.write(options.write_inputs);
  Trainer trainer(backend, problem);
  std::vector<Measured> steps;
  double first_loss = 0;
  for (int i = 0; i < options.warm_up + options.steps; ++i) {
    const Measured m = trainer.step();
    if (i == 0) first_loss = m.loss;
    if (i >= options.warm_up) steps.push_back(m);
  }
  const auto result = report(options, steps, first_loss, double(usage().ru_maxrss) / 1024);
  if (options.json)
    std::puts(result.dump().c_str());
  else
    print_table(backend, trainer, result, problem.weights.flat().size());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times whole training steps.", "training_step");
  Options options;
  options.add_to(app);
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "training_step: %s\n", error.what());
    return 1;
  }
}
