#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/core/random.hpp"
#include "dflash/io/fingerprint.hpp"
#include "dflash/io/json_file.hpp"
#include "dflash/io/safetensors_writer.hpp"
#include "dflash/model/target_config.hpp"

namespace dflash_benchmark {

using dflash::index_t;

/// The config.json of a well-known target.
inline nlohmann::json config_of_shape(const std::string& name) {
  if (name == "smollm2-135m")
    return {{"model_type", "llama"},
            {"architectures", {"LlamaForCausalLM"}},
            {"hidden_act", "silu"},
            {"hidden_size", 576},
            {"intermediate_size", 1536},
            {"num_hidden_layers", 30},
            {"num_attention_heads", 9},
            {"num_key_value_heads", 3},
            {"head_dim", 64},
            {"vocab_size", 49152},
            {"max_position_embeddings", 8192},
            {"rms_norm_eps", 1e-5},
            {"rope_theta", 100000.0},
            {"tie_word_embeddings", true},
            {"torch_dtype", "bfloat16"}};
  if (name == "qwen3-0.6b")
    return {{"model_type", "qwen3"},
            {"architectures", {"Qwen3ForCausalLM"}},
            {"hidden_act", "silu"},
            {"hidden_size", 1024},
            {"intermediate_size", 3072},
            {"num_hidden_layers", 28},
            {"num_attention_heads", 16},
            {"num_key_value_heads", 8},
            {"head_dim", 128},
            {"vocab_size", 151936},
            {"max_position_embeddings", 40960},
            {"rms_norm_eps", 1e-6},
            {"rope_theta", 1000000.0},
            {"tie_word_embeddings", true},
            {"torch_dtype", "bfloat16"}};
  if (name == "qwen3-8b") {
    auto json = config_of_shape("qwen3-0.6b");
    json.update({{"hidden_size", 4096},
                 {"intermediate_size", 12288},
                 {"num_hidden_layers", 36},
                 {"num_attention_heads", 32},
                 {"tie_word_embeddings", false}});
    return json;
  }
  throw dflash::Error("there is no shape '" + name +
                      "'; known are smollm2-135m, qwen3-0.6b and qwen3-8b");
}

/// The prompt that peers/target.py gives the other programs.
inline std::vector<std::int32_t> prompt_tokens(index_t n, index_t vocabulary) {
  std::vector<std::int32_t> tokens;
  for (index_t i = 0; i < n; ++i) tokens.push_back(std::int32_t((i * 7919 + 13) % vocabulary));
  return tokens;
}

/// Weights of a target without biases, drawn at random and rounded to bf16: the same in every run.
class RandomTarget {
 public:
  explicit RandomTarget(const nlohmann::json& json)
      : json_(json), config_(dflash::TargetConfig::from_json(json, "config.json")) {
    const auto& c = config_;
    const index_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    add("model.embed_tokens", {c.vocabulary, c.hidden});
    if (!c.tied_head) add("lm_head", {c.vocabulary, c.hidden});
    add("model.norm", {c.hidden});
    for (index_t i = 0; i < c.layers; ++i) {
      const std::string at = "model.layers." + std::to_string(i) + ".", self = at + "self_attn.",
                        mlp = at + "mlp.";
      add(at + "input_layernorm", {c.hidden});
      add(at + "post_attention_layernorm", {c.hidden});
      add(self + "q_proj", {q, c.hidden});
      add(self + "k_proj", {kv, c.hidden});
      add(self + "v_proj", {kv, c.hidden});
      add(self + "o_proj", {c.hidden, q});
      if (c.head_norms) {
        add(self + "q_norm", {c.head_dim});
        add(self + "k_norm", {c.head_dim});
      }
      add(mlp + "gate_proj", {c.intermediate, c.hidden});
      add(mlp + "up_proj", {c.intermediate, c.hidden});
      add(mlp + "down_proj", {c.hidden, c.intermediate});
    }
  }

  const dflash::TargetConfig& config() const { return config_; }

  // What the library asks of a source of weights.
  bool contains(std::string_view name) const { return entries_.find(name) != entries_.end(); }
  const dflash::TensorEntry& at(std::string_view name) const {
    const auto found = entries_.find(name);
    if (found == entries_.end()) throw dflash::Error("no tensor " + std::string(name));
    return found->second;
  }
  template <class T>
  void read(std::string_view name, const std::vector<index_t>& shape, T* out) const {
    dflash::expects(at(name).shape == shape, "RandomTarget: a tensor has another shape");
    const auto values = drawn(name);
    std::transform(values.begin(), values.end(), out,
                   [](dflash::bfloat16 x) { return T(float(x)); });
  }

  /// Writes a model folder with these weights.
  void write(const std::filesystem::path& folder) const {
    std::filesystem::create_directories(folder);
    dflash::write_json(folder / "config.json", json_);
    std::vector<std::vector<dflash::bfloat16>> values;
    std::vector<dflash::TensorData> tensors;
    for (const auto& [name, entry] : entries_) {
      values.push_back(drawn(name));
      tensors.push_back({name, dflash::DType::bf16, entry.shape, values.back().data()});
    }
    dflash::write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
  }

 private:
  void add(const std::string& name, const std::vector<index_t>& shape) {
    entries_[name + ".weight"] = {dflash::DType::bf16, shape, nullptr};
  }

  /// Scales lie around one; of matrices, a row times a vector of that size has about its size.
  std::vector<dflash::bfloat16> drawn(std::string_view name) const {
    const dflash::TensorEntry& entry = at(name);
    const dflash::Random random(dflash::xxh3(name.data(), index_t(name.size())));
    const bool scale = entry.shape.size() == 1;
    const double spread = scale ? 0.2 : std::sqrt(3.0 / double(entry.shape[1])) * 2,
                 middle = scale ? 0.9 : -spread / 2;
    std::vector<dflash::bfloat16> values(std::size_t(entry.size()));
    for (std::size_t i = 0; i < values.size(); i += 4) {
      const auto bits = random.bits(i);
      for (std::size_t j = i; j < std::min(i + 4, values.size()); ++j)
        values[j] = dflash::bfloat16(float(middle + spread * double(bits[j - i]) * 0x1p-32));
    }
    return values;
  }

  nlohmann::json json_;
  dflash::TargetConfig config_;
  std::map<std::string, dflash::TensorEntry, std::less<>> entries_;
};

}  // namespace dflash_benchmark
