#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "dflash/any_backend.hpp"
#include "flag_checks.hpp"

namespace examples {

using dflash::index_t;

/// What a store is to hold: the flags of those who write one.
struct StoreOptions {
  std::filesystem::path target, draft_config, output = "cache/hidden_states";
  std::string dtype = "target";
  index_t num_draft_layers = 5, block_size = 16, shard_mib = 256;
  std::vector<index_t> layer_ids;

  void add_to(CLI::App& app) {
    app.add_option("--target-model-path", target, "Hugging Face folder of the target")->required();
    app.add_option("--output-path", output, "folder of the store")->capture_default_str();
    app.add_option("--draft-config-path", draft_config,
                   "take captured layers and block size from this draft");
    app.add_option("--num-draft-layers", num_draft_layers,
                   "capture as many layers as a draft of this depth sees by default")
        ->capture_default_str()
        ->check(above_zero());
    app.add_option("--target-layer-ids", layer_ids, "capture just these layers");
    app.add_option("--block-size", block_size, "that the sample filter counts in")
        ->capture_default_str()
        ->check(above_zero());
    app.add_option("--dtype", dtype,
                   "of the stored states: target, bf16, f32 or f8_e4m3 (a scale per row)")
        ->check(CLI::IsMember({"target", "bf16", "f32", "f8_e4m3"}))
        ->capture_default_str();
    app.add_option("--shard-size", shard_mib, "MiB of a shard")
        ->capture_default_str()
        ->check(above_zero());
  }

  index_t blocks_of() const {
    return draft_config.empty() ? block_size : dflash::DraftConfig::read(draft_config).block_size;
  }

  /// `config` is the target's, `precision` that in which it computes.
  dflash::StoreDescription describe(const dflash::TargetConfig& config,
                                    const std::string& model_type, const std::string& sample_filter,
                                    const std::string& precision) const {
    return {.model_type = model_type,
            .target_name = target.filename().string(),
            .target_fingerprint = dflash::target_fingerprint(target),
            .layer_ids = layers(config.layers, model_type == "eagle3"),
            .hidden_size = config.hidden,
            .dtype = stored_dtype(config),
            .precision = precision,
            .rope_parameters = rope_parameters(config),
            .tokenizer_fingerprint = dflash::fingerprint_of_file(target / "tokenizer.json"),
            .block_size = blocks_of(),
            .sample_filter = sample_filter,
            .shard_bytes = shard_mib << 20};
  }

 private:
  dflash::DType stored_dtype(const dflash::TargetConfig& config) const {
    if (dtype == "f8_e4m3") return dflash::DType::f8_e4m3;
    const bool narrow = dtype == "bf16" || (dtype == "target" && is_bf16(config));
    return narrow ? dflash::DType::bf16 : dflash::DType::f32;
  }

  /// Whether the target is in bfloat16, as its config says or else its embedding is.
  bool is_bf16(const dflash::TargetConfig& config) const {
    if (!config.dtype.empty()) return config.dtype == "bfloat16";
    const dflash::WeightsFolder weights(target);
    return weights.at(dflash::TargetKeys().embedding).dtype == dflash::DType::bf16;
  }

  /// Those fields of the target's config that say how positions rotate; null if it has none.
  static nlohmann::json rope_parameters(const dflash::TargetConfig& config) {
    nlohmann::json fields;
    for (const char* field : {"rope_theta", "rope_scaling", "rope_parameters"})
      if (config.json.contains(field)) fields[field] = config.json[field];
    return fields;
  }

  std::vector<index_t> layers(index_t target_layers, bool eagle3) const {
    std::vector<index_t> ids = layer_ids;
    if (ids.empty() && eagle3) ids = {1, target_layers / 2 - 1, target_layers - 4};
    if (ids.empty() && !draft_config.empty())
      ids = dflash::DraftConfig::read(draft_config).target_layer_ids;
    if (ids.empty()) ids = dflash::default_target_layer_ids(target_layers, num_draft_layers);
    dflash::check_target_layer_ids(ids, target_layers, target.string());
    return ids;
  }
};

/// Says what is to be stored, and where there is room for it.
inline void print_size(const dflash::ShardPlan& plan, const std::filesystem::path& output) {
  const auto description = plan.description();
  std::printf("%td rows of %zu layers x %td: %s to store, %s free\n", plan.rows(),
              description.layer_ids.size(), description.hidden_size,
              dflash::bytes_text(plan.bytes()).c_str(),
              dflash::bytes_text(dflash::free_disk_bytes(output)).c_str());
}

}  // namespace examples
