// Captures a target's hidden states of conversations into a store:
//   prepare_hidden_states --target-model-path T --model-type dflash --data-path D.jsonl
//     --output-path STORE
// A capture that was interrupted goes on where it stopped when the same command runs again.

#include <cmath>
#include <iostream>

#include "guarded.hpp"
#include "tokenized_data.hpp"

using namespace dflash;
namespace fs = std::filesystem;

namespace {

struct Options {
  fs::path target, draft_config, output = "cache/hidden_states";
  std::string model_type = "eagle3", dtype = "target";
  index_t num_draft_layers = 5, block_size = 16, batch_size = 32, shard_mib = 256;
  std::vector<index_t> layer_ids;
  int threads = 0;
  examples::DataOptions data;

  void add_to(CLI::App& app) {
    app.add_option("--target-model-path", target, "Hugging Face folder of the target")->required();
    data.add_to(app, "--data-path", 2048);
    app.add_option("--output-path", output, "folder of the store")->capture_default_str();
    app.add_option("--model-type", model_type, "what the states are for: eagle3 or dflash")
        ->capture_default_str();
    app.add_option("--draft-config-path", draft_config,
                   "take captured layers and block size from this draft");
    app.add_option("--num-draft-layers", num_draft_layers,
                   "capture as many layers as a draft of this depth sees by default")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    app.add_option("--target-layer-ids", layer_ids, "capture just these layers");
    app.add_option("--block-size", block_size, "that the sample filter counts in")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    app.add_option("--batch-size", batch_size, "samples that pass the target together")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    app.add_option("--dtype", dtype, "of the stored states: target, bf16 or f32")
        ->check(CLI::IsMember({"target", "bf16", "f32"}))
        ->capture_default_str();
    app.add_option("--shard-size", shard_mib, "MiB of a shard")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    app.add_option("--threads", threads, "0: one per core")
        ->capture_default_str()
        ->check(CLI::NonNegativeNumber);
  }

  DType stored_dtype(const TargetConfig& config) const {
    if (dtype == "f32" || (dtype == "target" && config.dtype == "float32")) return DType::f32;
    return DType::bf16;
  }

  std::vector<index_t> layers(index_t target_layers) const {
    std::vector<index_t> ids = layer_ids;
    if (ids.empty() && model_type == "eagle3") ids = {1, target_layers / 2 - 1, target_layers - 4};
    if (ids.empty() && !draft_config.empty())
      ids = DraftConfig::read(draft_config).target_layer_ids;
    if (ids.empty()) ids = default_target_layer_ids(target_layers, num_draft_layers);
    check_target_layer_ids(ids, target_layers, target.string());
    return ids;
  }
};

}  // namespace

int main(int argc, char** argv) {
  return examples::guarded("prepare_hidden_states", [&] {
    CLI::App app("Captures a target's hidden states of conversations into a store.",
                 "prepare_hidden_states");
    app.failure_message(examples::flag_failure);
    Options options;
    options.add_to(app);
    CLI11_PARSE(app, argc, argv);

    FilterOptions filter{.model_type = model_type_from(options.model_type),
                         .block_size = options.draft_config.empty()
                                           ? options.block_size
                                           : DraftConfig::read(options.draft_config).block_size};
    const bool eagle3 = filter.model_type == ModelType::eagle3;
    const TargetConfig config = TargetConfig::read(options.target);
    const std::vector<index_t> layers = options.layers(config.layers);
    const Tokenizer tokenizer(options.target);
    const auto data = examples::read_samples(options.data, tokenizer, filter, config.vocabulary);

    ShardPlan plan({.model_type = options.model_type,
                    .target_name = options.target.filename().string(),
                    .target_fingerprint = target_fingerprint(options.target),
                    .layer_ids = layers,
                    .hidden_size = config.hidden,
                    .dtype = options.stored_dtype(config),
                    .rope_parameters = config.json.value("rope_scaling", nlohmann::json()),
                    .tokenizer_fingerprint = fingerprint_of_file(options.target / "tokenizer.json"),
                    .block_size = filter.block_size,
                    .sample_filter = eagle3 ? "none" : options.data.filter,
                    .shard_bytes = options.shard_mib << 20});
    for (const auto& sample : data.samples) plan.add(sample);
    std::printf("%td rows of %zu layers x %td: %s to store, %s free\n", plan.rows(), layers.size(),
                config.hidden, bytes_text(plan.bytes()).c_str(),
                bytes_text(free_disk_bytes(options.output)).c_str());
    ShardWriter writer(options.output, std::move(plan));
    writer.expect_space();
    if (writer.next() == index_t(data.samples.size())) {
      data.print();
      std::printf("nothing to do, the store is complete: %s\n", options.output.string().c_str());
      return 0;
    }
    if (writer.next() > 0) std::printf("continuing behind %td samples\n", writer.next());

    using B = CpuBackend<float>;
    B backend(options.threads > 0 ? options.threads
                                  : std::max(1, int(std::thread::hardware_concurrency())));
    const TargetModel<B> target(backend, options.target);
    CountProgress progress(std::cout, is_terminal(stdout), "samples", index_t(data.samples.size()),
                           writer.next());
    while (writer.next() < index_t(data.samples.size())) {
      const Range range =
          examples::next_pack(data.samples, writer.next(), options.batch_size, 16384);
      const std::span samples(data.samples.data() + range.begin, std::size_t(range.size()));
      const auto pack = examples::capture(target, samples, layers, eagle3);
      for (std::size_t i = 0; i < samples.size(); ++i) {
        const Range rows{pack.offsets[i], pack.offsets[i + 1]};
        const In<float, 2> features = In<float, 2>(pack.output.features.view()).rows(rows);
        if (!std::all_of(features.data, features.data + features.size(),
                         [](float x) { return std::isfinite(x); }))
          throw Error("the target gives hidden states that are not finite for sample " +
                      samples[i].id);
        writer.write(
            samples[i], features,
            eagle3 ? In<float, 2>(pack.output.last_hidden.view()).rows(rows) : In<float, 2>());
      }
      progress.show(writer.next());
    }
    progress.finish();
    data.print();
    std::printf("store: %s\n", options.output.string().c_str());
    return 0;
  });
}
