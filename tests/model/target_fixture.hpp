#pragma once

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dflash/core/random.hpp"
#include "dflash/io/json_file.hpp"
#include "dflash/io/safetensors_writer.hpp"
#include "dflash/model/target_config.hpp"

namespace fixture {

using dflash::index_t;

/// The config of a small model with 3 layers; to be changed by tests.
inline nlohmann::json small_config(const std::string& type) {
  return {{"model_type", type},
          {"hidden_size", 24},
          {"intermediate_size", 40},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 6},
          {"num_key_value_heads", 2},
          {"head_dim", 8},
          {"vocab_size", 50},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 100.0},
          {"tie_word_embeddings", false},
          {"eos_token_id", 1}};
}

/// A model folder with random weights for a config; goes with this object.
class RandomTarget {
 public:
  std::filesystem::path folder;
  dflash::DType dtype = dflash::DType::f32;  // or bf16: of the matrices, when written again
  dflash::TargetConfig config;
  std::map<std::string, std::vector<float>> weights;

  explicit RandomTarget(const nlohmann::json& json, std::uint64_t seed = 1)
      : config(dflash::TargetConfig::from_json(json, "config.json")), random_(seed) {
    static int count = 0;
    folder = std::filesystem::temp_directory_path() /
             ("dflash_target_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directories(folder);
    dflash::write_json(folder / "config.json", json);
    const auto& c = config;
    const index_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    add("model.embed_tokens.weight", {c.vocabulary, c.hidden}, 1);
    if (!c.tied_head) add("lm_head.weight", {c.vocabulary, c.hidden}, 0.3);
    norm("model.norm.weight", c.hidden);
    for (index_t i = 0; i < c.layers; ++i) {
      const std::string at = "model.layers." + std::to_string(i) + ".";
      norm(at + "input_layernorm.weight", c.hidden);
      norm(at + "post_attention_layernorm.weight", c.hidden);
      linear(at + "self_attn.q_proj", q, c.hidden, c.qkv_bias);
      linear(at + "self_attn.k_proj", kv, c.hidden, c.qkv_bias);
      linear(at + "self_attn.v_proj", kv, c.hidden, c.qkv_bias);
      linear(at + "self_attn.o_proj", c.hidden, q, c.o_bias);
      if (c.head_norms) {
        norm(at + "self_attn.q_norm.weight", c.head_dim);
        norm(at + "self_attn.k_norm.weight", c.head_dim);
      }
      linear(at + "mlp.gate_proj", c.intermediate, c.hidden, c.mlp_bias);
      linear(at + "mlp.up_proj", c.intermediate, c.hidden, c.mlp_bias);
      linear(at + "mlp.down_proj", c.hidden, c.intermediate, c.mlp_bias);
    }
    write();
  }
  RandomTarget(const RandomTarget&) = delete;
  RandomTarget& operator=(const RandomTarget&) = delete;
  ~RandomTarget() { std::filesystem::remove_all(folder); }

  /// Writes the weights again, after a test has changed or removed some.
  void write() const {
    std::vector<dflash::TensorData> tensors;
    std::map<std::string, std::vector<dflash::bfloat16>> narrow;
    for (const auto& [name, values] : weights) {
      const auto& shape = shapes.at(name);
      if (dtype == dflash::DType::bf16 && shape.size() == 2) {
        for (const float value : values) narrow[name].emplace_back(value);
        tensors.push_back({name, dtype, shape, narrow[name].data()});
      } else {
        tensors.push_back({name, dflash::DType::f32, shape, values.data()});
      }
    }
    dflash::write_safetensors(folder / "model.safetensors", tensors);
  }

  std::map<std::string, std::vector<index_t>> shapes;

 private:
  void add(const std::string& name, const std::vector<index_t>& shape, double scale,
           double mean = 0) {
    index_t size = 1;
    for (const index_t extent : shape) size *= extent;
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& value : values) value = float(mean + scale * random_.normal(next_++));
    weights[name] = std::move(values);
    shapes[name] = shape;
  }
  void norm(const std::string& name, index_t size) { add(name, {size}, 0.2, 1); }
  void linear(const std::string& name, index_t rows, index_t columns, bool bias) {
    add(name + ".weight", {rows, columns}, 0.3);
    if (bias) add(name + ".bias", {rows}, 0.5);
  }

  dflash::Random random_;
  std::uint64_t next_ = 0;
};

/// The decoder as its papers define it, one row after another, in double precision.
struct PlainDecoder {
  const RandomTarget& target;
  using Row = std::vector<double>;

  const std::vector<float>& weight(const std::string& name) const {
    return target.weights.at(name);
  }

  Row norm(const Row& x, const std::string& name, std::size_t at = 0, std::size_t size = 0) const {
    if (size == 0) size = x.size();
    double sum = 0;
    for (std::size_t i = 0; i < size; ++i) sum += x[at + i] * x[at + i];
    const double scale = 1 / std::sqrt(sum / double(size) + target.config.eps);
    Row y = x;
    for (std::size_t i = 0; i < size; ++i) y[at + i] *= scale * double(weight(name)[i]);
    return y;
  }
  Row times(const Row& x, const std::string& name) const {
    const auto& w = weight(name + ".weight");
    Row y(w.size() / x.size());
    for (std::size_t o = 0; o < y.size(); ++o) {
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += double(w[o * x.size() + i]) * x[i];
      if (target.weights.contains(name + ".bias")) y[o] += double(weight(name + ".bias")[o]);
    }
    return y;
  }
  /// Normalises, where the model does, and rotates each head of a row.
  Row turned(Row x, const std::string& norm_name, double position) const {
    const std::size_t d = std::size_t(target.config.head_dim);
    for (std::size_t at = 0; at < x.size(); at += d) {
      if (target.config.head_norms) x = norm(x, norm_name, at, d);
      for (std::size_t j = 0; j < d / 2; ++j) {
        const double angle =
            position * std::pow(target.config.rope.theta, -2.0 * double(j) / double(d));
        const double a = x[at + j], b = x[at + j + d / 2];
        x[at + j] = a * std::cos(angle) - b * std::sin(angle);
        x[at + j + d / 2] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
    return x;
  }

  /// The residual stream after each layer, and at last the logits.
  std::vector<std::vector<Row>> run(const std::vector<std::int32_t>& tokens) const {
    const auto& c = target.config;
    const std::size_t d = std::size_t(c.head_dim), hidden = std::size_t(c.hidden);
    const std::size_t group = std::size_t(c.heads / c.kv_heads);
    std::vector<Row> x;
    for (const auto token : tokens) {
      const float* row = &weight("model.embed_tokens.weight")[std::size_t(token) * hidden];
      x.emplace_back(row, row + hidden);
    }
    std::vector<std::vector<Row>> states;
    for (index_t layer = 0; layer < c.layers; ++layer) {
      const std::string at = "model.layers." + std::to_string(layer) + ".",
                        self = at + "self_attn.";
      std::vector<Row> q, k, v;
      for (std::size_t n = 0; n < x.size(); ++n) {
        const Row normed = norm(x[n], at + "input_layernorm.weight");
        q.push_back(turned(times(normed, self + "q_proj"), self + "q_norm.weight", double(n)));
        k.push_back(turned(times(normed, self + "k_proj"), self + "k_norm.weight", double(n)));
        v.push_back(times(normed, self + "v_proj"));
      }
      const index_t window = c.windows[std::size_t(layer)];
      for (std::size_t n = 0; n < x.size(); ++n) {
        const std::size_t first =
            window > 0 && index_t(n) >= window ? n + 1 - std::size_t(window) : 0;
        Row attended(q[n].size());
        for (std::size_t h = 0; h < std::size_t(c.heads); ++h) {
          Row p;
          double sum = 0;
          for (std::size_t j = first; j <= n; ++j) {
            double score = 0;
            for (std::size_t i = 0; i < d; ++i) score += q[n][h * d + i] * k[j][h / group * d + i];
            p.push_back(std::exp(score / std::sqrt(double(d))));
            sum += p.back();
          }
          for (std::size_t j = first; j <= n; ++j)
            for (std::size_t i = 0; i < d; ++i)
              attended[h * d + i] += p[j - first] / sum * v[j][h / group * d + i];
        }
        add(x[n], times(attended, self + "o_proj"));
        const Row normed = norm(x[n], at + "post_attention_layernorm.weight");
        Row gate = times(normed, at + "mlp.gate_proj"), up = times(normed, at + "mlp.up_proj");
        for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
        add(x[n], times(gate, at + "mlp.down_proj"));
      }
      states.push_back(x);
    }
    for (Row& row : x)
      row = times(norm(row, "model.norm.weight"), c.tied_head ? "model.embed_tokens" : "lm_head");
    states.push_back(x);
    return states;
  }

  static void add(Row& x, const Row& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
};

}  // namespace fixture
