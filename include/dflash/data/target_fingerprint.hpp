#pragma once

#include <filesystem>
#include <string>

#include "dflash/io/fingerprint.hpp"
#include "dflash/io/json_file.hpp"
#include "dflash/io/weights_folder.hpp"

namespace dflash {

/// Identifies the model in a Hugging Face folder: what its config says of the arithmetic, and its
/// tensors (large ones by samples), whatever the path and the cut into shards.
inline std::string target_fingerprint(const std::filesystem::path& folder) {
  const auto path = folder / "config.json";
  const nlohmann::json config = read_json(path);
  Fingerprint fingerprint;
  for (const char* field :
       {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "hidden_act",
        "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias",
        "tie_word_embeddings", "use_sliding_window", "sliding_window", "max_window_layers",
        "layer_types"}) {
    const nlohmann::json* value = find_field(config, field);
    if (value != nullptr) fingerprint.add(field).add(text_of(*value));
  }
  const WeightsFolder weights(folder);
  for (const std::string& name : weights.names()) fingerprint.add(name, weights.at(name));
  return fingerprint.text();
}

}  // namespace dflash
