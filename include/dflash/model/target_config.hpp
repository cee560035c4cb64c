#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/io/in_quotes.hpp"
#include "dflash/io/json_file.hpp"
#include "dflash/model/rope_parameters.hpp"

namespace dflash {

/// What a target's folder says of its decoder: config.json of a Qwen3, Qwen2 or Llama model, and
/// the stop tokens of generation_config.json.
struct TargetConfig {
  std::string model_type;                         // qwen3, qwen2 or llama
  index_t hidden = 0, intermediate = 0;           // H, I
  index_t layers = 0, vocabulary = 0;             // V
  index_t heads = 0, kv_heads = 0, head_dim = 0;  // D
  index_t positions = 0;                          // longest sequence it is meant for; 0: unsaid
  double eps = 0;                                 // of the norms
  bool head_norms = false;                        // q and k are normalised per head (Qwen3)
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool tied_head = false;  // the head is the embedding
  RopeParameters rope;
  std::vector<index_t> windows;           // (layers) of sliding layers, in tokens; 0: all
  std::vector<std::int32_t> stop_tokens;  // each ends an answer
  std::string dtype;                      // of the stored weights, such as bfloat16; may be empty
  nlohmann::json json;                    // config.json, whole

  /// Reads a model folder. Error naming the file, the field and the value of what is missing,
  /// contradictory or not supported.
  static TargetConfig read(const std::filesystem::path& folder);
  /// The same of the content of a config.json; `path` is for errors. No stop tokens but its own.
  static TargetConfig from_json(const nlohmann::json& config, const std::filesystem::path& path);
};

namespace detail {

/// Reads the fields of one config.json.
class TargetConfigReader {
 public:
  TargetConfigReader(const nlohmann::json& json, const std::filesystem::path& path)
      : json_(json), path_(path) {}

  TargetConfig read() const {
    TargetConfig c;
    c.json = json_;
    c.model_type = read_model_type();
    refuse_what_is_not_built();
    c.hidden = size("hidden_size", 1 << 24);
    c.intermediate = size("intermediate_size");
    c.layers = size("num_hidden_layers", 10'000);
    c.vocabulary = size("vocab_size");
    c.positions = optional<index_t>(json_, "max_position_embeddings", path_, 0);
    read_heads(c);
    c.eps = required<double>(json_, "rms_norm_eps", path_);
    if (!(c.eps > 0 && c.eps < 1)) fail("rms_norm_eps", "must lie between 0 and 1");
    read_flags(c);
    try {
      c.rope = RopeParameters::read(json_);
    } catch (const std::exception& error) {
      throw Error(path_.string() + ": " + error.what());
    }
    read_windows(c);
    c.stop_tokens = token_ids(json_, path_);
    c.dtype = optional<std::string>(json_, "dtype", path_,
                                    optional<std::string>(json_, "torch_dtype", path_));
    return c;
  }

  /// The field eos_token_id: one id, a list of them, or none.
  static std::vector<std::int32_t> token_ids(const nlohmann::json& json,
                                             const std::filesystem::path& path) {
    const nlohmann::json* field = find_field(json, "eos_token_id");
    if (field == nullptr) return {};
    if (field->is_array()) return typed<std::vector<std::int32_t>>(*field, "eos_token_id", path);
    return {typed<std::int32_t>(*field, "eos_token_id", path)};
  }

 private:
  [[noreturn]] void fail(const char* field, const std::string& why) const {
    const nlohmann::json* value = find_field(json_, field);
    throw Error(path_.string() + ": field " + in_quotes(field) + " is " +
                (value == nullptr ? "absent" : in_quotes(value->dump())) + ", but " + why);
  }

  std::string read_model_type() const {
    const auto type = required<std::string>(json_, "model_type", path_);
    const std::string architecture = type == "qwen3"   ? "Qwen3ForCausalLM"
                                     : type == "qwen2" ? "Qwen2ForCausalLM"
                                     : type == "llama" ? "LlamaForCausalLM"
                                                       : "";
    if (architecture.empty()) fail("model_type", "known are qwen3, qwen2 and llama");
    const auto named = optional<std::vector<std::string>>(json_, "architectures", path_);
    if (!named.empty() && std::find(named.begin(), named.end(), architecture) == named.end())
      fail("architectures", "a target of type " + type + " is a " + architecture);
    return type;
  }

  void refuse_what_is_not_built() const {
    if (find_field(json_, "quantization_config") != nullptr)
      fail("quantization_config", "only weights in f32, f16 and bf16 can be read");
    if (optional<std::string>(json_, "hidden_act", path_, "silu") != "silu")
      fail("hidden_act", "only silu is known");
    if (optional<double>(json_, "partial_rotary_factor", path_, 1) != 1)
      fail("partial_rotary_factor", "models of this type rotate whole heads");
  }

  index_t size(const char* field, index_t largest = (index_t(1) << 31) - 1) const {
    const auto value = required<index_t>(json_, field, path_);
    if (value < 1 || value > largest)
      fail(field, "must lie between 1 and " + std::to_string(largest));
    return value;
  }

  void read_heads(TargetConfig& c) const {
    c.heads = size("num_attention_heads");
    c.kv_heads =
        find_field(json_, "num_key_value_heads") != nullptr ? size("num_key_value_heads") : c.heads;
    if (c.heads % c.kv_heads != 0)
      fail("num_attention_heads",
           "must be a multiple of num_key_value_heads, " + std::to_string(c.kv_heads));
    if (find_field(json_, "head_dim") != nullptr) {
      c.head_dim = size("head_dim");
    } else {
      if (c.hidden % c.heads != 0)
        fail("head_dim", "hidden_size " + std::to_string(c.hidden) + " is no multiple of the " +
                             std::to_string(c.heads) + " heads");
      c.head_dim = c.hidden / c.heads;
    }
    if (c.head_dim % 2 != 0) fail("head_dim", "rotary embedding needs an even head size");
  }

  void read_flags(TargetConfig& c) const {
    c.tied_head = optional<bool>(json_, "tie_word_embeddings", path_, false);
    c.head_norms = c.model_type == "qwen3";
    const bool bias = optional<bool>(json_, "attention_bias", path_, false);
    c.qkv_bias = c.model_type == "qwen2" || bias;
    c.o_bias = c.model_type != "qwen2" && bias;
    c.mlp_bias = c.model_type == "llama" && optional<bool>(json_, "mlp_bias", path_, false);
  }

  void read_windows(TargetConfig& c) const {
    c.windows.assign(std::size_t(c.layers), 0);
    if (c.model_type == "llama") return;  // whatever its config says, it has no windows
    const bool use = optional<bool>(json_, "use_sliding_window", path_, false);
    std::vector<bool> sliding(c.windows.size(), false);
    if (find_field(json_, "layer_types") != nullptr) {
      const auto types = required<std::vector<std::string>>(json_, "layer_types", path_);
      if (index_t(types.size()) != c.layers)
        throw Error(path_.string() + ": field \"layer_types\" lists " +
                    std::to_string(types.size()) + " layers where num_hidden_layers is " +
                    std::to_string(c.layers));
      for (std::size_t i = 0; i < types.size(); ++i) {
        sliding[i] = types[i] == "sliding_attention";
        if (!sliding[i] && types[i] != "full_attention")
          throw Error(path_.string() + ": field \"layer_types\" names " + in_quotes(types[i]) +
                      "; known are full_attention and sliding_attention");
        if (sliding[i] && !use) fail("use_sliding_window", "layer_types has sliding_attention");
      }
    } else if (use && find_field(json_, "sliding_window") != nullptr) {
      const auto first = optional<index_t>(json_, "max_window_layers", path_, 28);
      for (std::size_t i = 0; i < sliding.size(); ++i) sliding[i] = index_t(i) >= first;
    }
    for (std::size_t i = 0; i < sliding.size(); ++i)
      if (sliding[i]) c.windows[i] = size("sliding_window");
  }

  const nlohmann::json& json_;
  const std::filesystem::path& path_;
};

}  // namespace detail

inline TargetConfig TargetConfig::from_json(const nlohmann::json& config,
                                            const std::filesystem::path& path) {
  return detail::TargetConfigReader(config, path).read();
}

inline TargetConfig TargetConfig::read(const std::filesystem::path& folder) {
  const auto path = folder / "config.json", generation = folder / "generation_config.json";
  TargetConfig config = from_json(read_json(path), path);
  if (std::filesystem::exists(generation)) {
    auto stop = detail::TargetConfigReader::token_ids(read_json(generation), generation);
    if (!stop.empty()) config.stop_tokens = std::move(stop);
  }
  return config;
}

}  // namespace dflash
