#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dflash/io/json_file.hpp"
#include "dflash/model/rope_parameters.hpp"
#include "dflash/model/target_layer_ids.hpp"

namespace dflash {

/// Sizes and constants of one draft layer.
struct DFlashShape {
  index_t hidden = 0, intermediate = 0;           // H, I
  index_t heads = 0, kv_heads = 0, head_dim = 0;  // query heads, key/value heads, D
  bool attention_bias = false;
  double eps = 1e-6;
};

/// A draft model's config.json: Qwen3's keys and DFlash's own, as published drafts have them.
struct DraftConfig {
  DFlashShape shape;
  index_t layers = 1;                     // L
  index_t block_size = 16;                // K
  index_t vocabulary = 0;                 // V
  index_t target_layers = 0;              // layers of the target
  std::vector<index_t> target_layer_ids;  // (C)
  std::optional<std::int32_t> mask_token;
  std::vector<bool> sliding;  // (L), which layers see a window only
  index_t window = 0;         // of sliding layers, in tokens
  RopeParameters rope;
  double initializer_range = 0.02;
  nlohmann::json json;  // the whole file: keys that only other programs read survive a rewrite

  index_t feature_width() const { return index_t(target_layer_ids.size()) * shape.hidden; }
  index_t layer_window(index_t layer) const {
    return sliding[static_cast<std::size_t>(layer)] ? window : 0;
  }

  /// Reads a config.json, or the one in a folder. Errors name the file and the field.
  static DraftConfig read(const std::filesystem::path& path);
  static DraftConfig from_json(const nlohmann::json& config, const std::string& file);

  /// The draft that fits a target's config.json: its widths and heads, `draft_layers` layers, and
  /// as many captured layers.
  static DraftConfig for_target(const nlohmann::json& target, index_t draft_layers,
                                index_t block_size, const std::string& file);

  /// The config as it is written beside weights of the given dtype ("float32", "bfloat16").
  nlohmann::json to_json(const std::string& dtype) const;
};

namespace detail {

inline index_t positive(const nlohmann::json& config, const char* key, const std::string& file) {
  const auto value = required<index_t>(config, key, file);
  if (value <= 0)
    throw Error(file + ": field '" + key + "' must be positive, got " + std::to_string(value));
  return value;
}

inline void read_layer_types(const nlohmann::json& config, const std::string& file,
                             DraftConfig& draft) {
  draft.sliding.assign(static_cast<std::size_t>(draft.layers), false);
  const auto types = config.find("layer_types");
  if (types != config.end() && types->is_array()) {
    if (index_t(types->size()) != draft.layers)
      throw Error(file + ": layer_types lists " + std::to_string(types->size()) +
                  " layers, but num_hidden_layers is " + std::to_string(draft.layers));
    for (std::size_t i = 0; i < types->size(); ++i) {
      if ((*types)[i] == "sliding_attention") {
        draft.sliding[i] = true;
      } else if ((*types)[i] != "full_attention") {
        throw Error(file + ": layer_types[" + std::to_string(i) + "] is " + (*types)[i].dump() +
                    "; known are full_attention and sliding_attention");
      }
    }
  } else if (optional<bool>(config, "use_sliding_window", file, false)) {
    const auto first = optional<index_t>(config, "max_window_layers", file, 28);
    for (index_t i = std::max<index_t>(first, 0); i < draft.layers; ++i)
      draft.sliding[static_cast<std::size_t>(i)] = true;
  }
  for (bool sliding : draft.sliding)
    if (sliding) draft.window = positive(config, "sliding_window", file);
}

}  // namespace detail

inline DraftConfig DraftConfig::from_json(const nlohmann::json& config, const std::string& file) {
  using detail::positive;
  DraftConfig draft;
  draft.json = config;
  DFlashShape& s = draft.shape;
  s.hidden = positive(config, "hidden_size", file);
  s.intermediate = positive(config, "intermediate_size", file);
  s.heads = positive(config, "num_attention_heads", file);
  s.kv_heads = optional<index_t>(config, "num_key_value_heads", file, s.heads);
  s.head_dim = optional<index_t>(config, "head_dim", file, s.hidden / s.heads);
  s.attention_bias = optional<bool>(config, "attention_bias", file, false);
  s.eps = optional<double>(config, "rms_norm_eps", file, 1e-6);
  if (s.kv_heads <= 0 || s.heads % s.kv_heads != 0)
    throw Error(file + ": num_attention_heads (" + std::to_string(s.heads) +
                ") must be a multiple of num_key_value_heads (" + std::to_string(s.kv_heads) + ")");
  if (s.head_dim <= 0 || s.head_dim % 2 != 0)
    throw Error(file + ": head_dim must be positive and even, got " + std::to_string(s.head_dim));
  if (const auto act = optional<std::string>(config, "hidden_act", file, "silu"); act != "silu")
    throw Error(file + ": hidden_act is '" + act + "', but DFlash layers use silu");
  draft.layers = positive(config, "num_hidden_layers", file);
  draft.block_size = positive(config, "block_size", file);
  if (draft.block_size < 2)
    throw Error(file + ": block_size must be at least 2 (an anchor and one proposed token), got " +
                std::to_string(draft.block_size));
  draft.vocabulary = positive(config, "vocab_size", file);
  draft.target_layers = positive(config, "num_target_layers", file);
  const nlohmann::json own = config.value("dflash_config", nlohmann::json::object());
  draft.target_layer_ids =
      optional<std::vector<index_t>>(own, "target_layer_ids", file + ": dflash_config",
                                     default_target_layer_ids(draft.target_layers, draft.layers));
  check_target_layer_ids(draft.target_layer_ids, draft.target_layers, file);
  if (own.contains("mask_token_id") && !own["mask_token_id"].is_null()) {
    const auto mask = required<index_t>(own, "mask_token_id", file + ": dflash_config");
    if (mask < 0 || mask >= draft.vocabulary)
      throw Error(file + ": mask_token_id " + std::to_string(mask) +
                  " is outside the vocabulary of " + std::to_string(draft.vocabulary));
    draft.mask_token = std::int32_t(mask);
  }
  detail::read_layer_types(config, file, draft);
  try {
    draft.rope = RopeParameters::read(config);
  } catch (const std::exception& error) {
    throw Error(file + ": " + error.what());
  }
  draft.initializer_range = optional<double>(config, "initializer_range", file, 0.02);
  return draft;
}

inline DraftConfig DraftConfig::read(const std::filesystem::path& path) {
  const auto file = std::filesystem::is_directory(path) ? path / "config.json" : path;
  return from_json(read_json(file), file.string());
}

inline DraftConfig DraftConfig::for_target(const nlohmann::json& target, index_t draft_layers,
                                           index_t block_size, const std::string& file) {
  nlohmann::json config;
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
        "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "vocab_size",
        "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"})
    if (target.contains(key)) config[key] = target[key];
  config["num_hidden_layers"] = draft_layers;
  config["num_target_layers"] = required<index_t>(target, "num_hidden_layers", file);
  config["block_size"] = block_size;
  config["hidden_act"] = "silu";
  config["attention_bias"] = false;
  config["attention_dropout"] = 0.0;
  config["initializer_range"] = 0.02;
  config["layer_types"] = std::vector<std::string>(static_cast<std::size_t>(draft_layers),
                                                   std::string("full_attention"));
  return from_json(config, file);
}

inline nlohmann::json DraftConfig::to_json(const std::string& dtype) const {
  nlohmann::json out = json;
  out["architectures"] = {"DFlashDraftModel"};
  out["model_type"] = "qwen3";
  out["dtype"] = dtype;
  out.erase("torch_dtype");
  out.erase("auto_map");  // would name a Python file that does not lie beside the weights
  out["hidden_size"] = shape.hidden;
  out["intermediate_size"] = shape.intermediate;
  out["num_attention_heads"] = shape.heads;
  out["num_key_value_heads"] = shape.kv_heads;
  out["head_dim"] = shape.head_dim;
  out["attention_bias"] = shape.attention_bias;
  out["rms_norm_eps"] = shape.eps;
  out["num_hidden_layers"] = layers;
  out["vocab_size"] = vocabulary;
  out["block_size"] = block_size;
  out["num_target_layers"] = target_layers;
  out["hidden_act"] = "silu";
  out["initializer_range"] = initializer_range;
  out["tie_word_embeddings"] = false;
  std::vector<std::string> types;
  bool any = false;
  for (bool s : sliding) {
    types.push_back(s ? "sliding_attention" : "full_attention");
    any = any || s;
  }
  out["layer_types"] = types;
  out["use_sliding_window"] = any;
  out["sliding_window"] = any ? nlohmann::json(window) : nlohmann::json(nullptr);
  out["max_window_layers"] = layers;
  if (!out.contains("rope_theta")) out["rope_theta"] = rope.theta;
  if (!out.contains("rope_scaling")) out["rope_scaling"] = nullptr;
  nlohmann::json& own = out["dflash_config"];
  if (!own.is_object()) own = nlohmann::json::object();
  own.erase("attention_backend");  // a way of computing, not a property of the weights
  own["target_layer_ids"] = target_layer_ids;
  own["mask_token_id"] = mask_token ? nlohmann::json(*mask_token) : nlohmann::json(nullptr);
  return out;
}

/// Where a mask token may come from, in the order in which they are asked.
struct MaskTokenSources {
  std::optional<std::int32_t> given = {}, draft_config = {}, tokenizer_mask = {};
  index_t tokenizer_size = 0;  // its first unused id, if the embedding has a row for it
  std::optional<std::int32_t> pad = {}, eos = {}, unknown = {};
  index_t vocabulary = 0;  // rows of the embedding
};

/// The id that stands for "not known yet" in a block. Throws Error if an explicit id is outside the
/// vocabulary, or if there is none.
inline std::int32_t resolve_mask_token(const MaskTokenSources& from) {
  const auto fits = [&](std::optional<std::int32_t> id) {
    return id && *id >= 0 && *id < from.vocabulary;
  };
  if (from.given && !fits(from.given))
    throw Error("--mask-token-id " + std::to_string(*from.given) +
                " is outside the vocabulary of " + std::to_string(from.vocabulary));
  for (const auto& id : {from.given, from.draft_config, from.tokenizer_mask})
    if (fits(id)) return *id;
  if (from.tokenizer_size > 0 && from.tokenizer_size < from.vocabulary)
    return std::int32_t(from.tokenizer_size);
  for (const auto& id : {from.pad, from.eos, from.unknown})
    if (fits(id)) return *id;
  throw Error("no mask token: give one with --mask-token-id");
}

}  // namespace dflash
