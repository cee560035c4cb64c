// Prefill and greedy decoding of a target, beside what the machine could do at best:
//   target_benchmark --target-model-path T --threads 2
//   target_benchmark --shape smollm2-135m --json
//   target_benchmark --shape smollm2-135m --write-model FOLDER

#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "dflash/cpu.hpp"
#include "dflash/decode/greedy.hpp"
#include "dflash/model/target_model.hpp"
#include "dflash/train/progress.hpp"
#include "machine_peak.hpp"
#include "random_target.hpp"

namespace {

using namespace dflash;
using namespace dflash_benchmark;
using B = CpuBackend<float>;

struct Options {
  std::filesystem::path target, write_model;
  std::string shape, precision = "fp32", weights = "as-stored";
  index_t prompt = 512, new_tokens = 64;
  int threads = 1, repeats = 3;
  bool json = false;

  double bytes_per_weight(const TargetConfig& config) const {
    if (weights == "int8") return 1;
    const bool stored = weights == "as-stored" && precision == "fp32" && config.dtype == "bfloat16";
    return precision == "bf16" || stored ? 2 : 4;
  }

  void add_to(CLI::App& app) {
    auto* folder = app.add_option("--target-model-path", target, "Hugging Face folder");
    auto* named =
        app.add_option("--shape", shape, "random weights: smollm2-135m, qwen3-0.6b or qwen3-8b");
    folder->excludes(named);
    app.require_option(1, 0);
    app.add_option("--write-model", write_model, "write the named shape's model there, and end")
        ->needs(named);
    app.add_option("--prompt", prompt, "tokens of the prompt")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    app.add_option("--new-tokens", new_tokens, "tokens decoded behind it")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    app.add_option("--repeats", repeats, "the fastest counts, of the share of bandwidth the median")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    app.add_option("--threads", threads)->capture_default_str()->check(CLI::PositiveNumber);
    app.add_option("--precision", precision, "of the products: fp32, bf16x3 or bf16")
        ->capture_default_str();
    app.add_option("--weights", weights, "in memory: as-stored, wide or int8")
        ->capture_default_str();
    app.add_flag("--json", json, "print one JSON object only");
  }
};

/// Multiplications and additions of a prefill: all layers, but of the last one keys and values
/// alone for rows before the last, and the head of the last row.
double prefill_operations(const TargetConfig& config, index_t n) {
  const double head = double(config.vocabulary) * double(config.hidden),
               layers = double(TargetCut(config, Share{}).weights(config)) -
                        (config.tied_head ? 1 : 2) * head,
               keys = 2 * double(config.kv_heads * config.head_dim) * double(config.hidden),
               last = layers / double(config.layers) - keys,
               attended = double(n) * double(n + 1) / 2 * double(config.heads * config.head_dim);
  return 2 * ((layers - last) * double(n) + last + head) + 4 * attended * double(config.layers - 1);
}

/// Bytes of weights that a decoded token needs: all but the embedding's, where the head has its
/// own.
double weight_bytes(const TargetConfig& config, const Options& options) {
  const index_t all = TargetCut(config, Share{}).weights(config);
  return double(all - (config.tied_head ? 0 : config.vocabulary * config.hidden)) *
         options.bytes_per_weight(config);
}

/// Bytes of keys and values that a decoded token sees, on average.
double cache_bytes(const TargetConfig& config, const Options& options) {
  const double length = double(options.prompt) + double(options.new_tokens + 1) / 2;
  double rows = 0;
  for (const index_t window : config.windows)
    rows += window > 0 ? std::min(double(window), length) : length;
  return rows * 2 * double(config.kv_heads * config.head_dim) * sizeof(float);
}

/// Greedy decoding behind a prompt: the first token comes of the prompt and is not timed.
double decode_seconds(const TargetModel<B>& target, const std::vector<std::int32_t>& prompt,
                      index_t new_tokens, std::vector<std::int32_t>& answer) {
  auto cache = target.cache();
  answer.clear();
  std::vector<std::int32_t> next = prompt;
  double start = 0;
  while (index_t(answer.size()) <= new_tokens) {
    const auto output =
        target.forward(next, cache, TargetRequest{.layers = {}, .logits = Logits::last});
    Tensor<B, std::int32_t, 1> best(target.backend(), {1});
    argmax_rows(target.backend(), output.logits.view(), best.view());
    next.assign(1, best.view()(0));
    answer.push_back(next[0]);
    if (answer.size() == 1) start = seconds_now();
  }
  return seconds_now() - start;
}

nlohmann::json measure(const TargetModel<B>& target, const Options& options) {
  const TargetConfig& config = target.config();
  const auto prompt = prompt_tokens(options.prompt, config.vocabulary);
  const TargetRequest last{.layers = {}, .logits = Logits::last};
  const std::vector<index_t> offsets{0, options.prompt};
  const double prefill =
      best_seconds(options.repeats, [&] { target.prefill(prompt, offsets, last); });

  std::vector<std::int32_t> answer;
  decode_seconds(target, prompt, options.new_tokens, answer);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);

  // A virtual machine's bandwidth changes from one moment to the next: it is measured before and
  // after each run.
  ReadBandwidth read(target.backend());
  const double tokens = double(options.new_tokens), weights = weight_bytes(config, options),
               bytes = weights + cache_bytes(config, options);
  double decode = 1e30, bandwidth = 0, before = read();
  std::vector<double> fractions;
  for (int i = 0; i < options.repeats; ++i) {
    const double seconds = decode_seconds(target, prompt, options.new_tokens, answer);
    const double after = read();
    if (seconds < decode) decode = seconds, bandwidth = (before + after) / 2;
    fractions.push_back(bytes * tokens / seconds / ((before + after) / 2));
    before = after;
  }
  std::nth_element(fractions.begin(), fractions.begin() + options.repeats / 2, fractions.end());
  return {{"prefill_tokens", options.prompt},
          {"prefill_s", prefill},
          {"prefill_tokens_per_s", double(options.prompt) / prefill},
          {"prefill_gflops", prefill_operations(config, options.prompt) / prefill * 1e-9},
          {"decode_tokens", options.new_tokens},
          {"decode_s", decode},
          {"decode_tokens_per_s", tokens / decode},
          {"decode_weight_bytes_per_token", weights},
          {"decode_bytes_per_token", bytes},
          {"decode_gb_per_s", bytes * tokens / decode * 1e-9},
          {"bandwidth_gb_per_s", bandwidth * 1e-9},
          {"decode_fraction_of_bandwidth", fractions[std::size_t(options.repeats / 2)]},
          {"peak_mb", double(usage.ru_maxrss) / 1024},
          {"tokens", answer}};
}

nlohmann::json run(const Options& options) {
  B backend(options.threads, cpu_precisions.named(options.precision));
  const WeightStorage storage = weight_storages.named(options.weights);
  nlohmann::json result;
  if (options.shape.empty()) {
    result = measure(TargetModel<B>(backend, options.target, storage), options);
  } else {
    const RandomTarget weights(config_of_shape(options.shape));
    result = measure(TargetModel<B>(backend, weights.config(), weights, storage), options);
  }
  const double peak = peak_flops(backend, options.precision == "bf16") * 1e-9;
  result["threads"] = options.threads;
  result["path"] = name_of(backend.path());
  result["precision"] = options.precision;
  result["weights"] = options.weights;
  result["peak_gflops"] = peak;
  result["prefill_fraction_of_peak"] = result["prefill_gflops"].get<double>() / peak;
  return result;
}

void print(const nlohmann::json& r) {
  const auto number = [&](const char* name) { return r.at(name).get<double>(); };
  std::printf("prefill of %.0f tokens: %.1f tokens/s, %.1f GFLOP/s of %.1f (%.0f %%)\n",
              number("prefill_tokens"), number("prefill_tokens_per_s"), number("prefill_gflops"),
              number("peak_gflops"), 100 * number("prefill_fraction_of_peak"));
  std::printf(
      "decoding of %.0f tokens: %.1f tokens/s, %.1f GB/s of weights, keys and values, of %.1f; "
      "in the median run %.0f %%\n",
      number("decode_tokens"), number("decode_tokens_per_s"), number("decode_gb_per_s"),
      number("bandwidth_gb_per_s"), 100 * number("decode_fraction_of_bandwidth"));
  std::printf("%.0f threads, %.0f MB at most\n", number("threads"), number("peak_mb"));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Prefill and greedy decoding of a target.", "target_benchmark");
  Options options;
  options.add_to(app);
  CLI11_PARSE(app, argc, argv);
  try {
    if (!options.write_model.empty()) {
      RandomTarget(config_of_shape(options.shape)).write(options.write_model);
      return 0;
    }
    const nlohmann::json result = run(options);
    if (options.json)
      std::printf("%s\n", result.dump().c_str());
    else
      print(result);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "target_benchmark: %s\n", error.what());
    return 1;
  }
  return 0;
}
