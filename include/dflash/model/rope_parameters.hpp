#pragma once

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// Rotary position embedding as configs describe it: plain, llama3 (Llama 3.1's) or yarn
/// (arXiv:2309.00071) scaling of the inverse frequencies.
struct RopeParameters {
  enum class Scaling { none, linear, llama3, yarn };

  double theta = 10000;
  Scaling scaling = Scaling::none;
  double factor = 1;
  double original_positions = 0;  // llama3, yarn: positions of pre-training
  double low_frequency_factor = 1, high_frequency_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;                        // yarn
  bool truncate = true;         // yarn: the ramp begins and ends at whole pairs
  double attention_factor = 1;  // multiplies cos and sin (yarn)

  /// Reads `rope_theta` and `rope_scaling`, or the newer `rope_parameters`, of a model's config.
  static RopeParameters read(const nlohmann::json& config) {
    RopeParameters rope;
    rope.theta = optional(config, "rope_theta", rope.theta);
    nlohmann::json s;
    for (const char* key : {"rope_scaling", "rope_parameters"})
      if (config.contains(key) && config[key].is_object()) s = config[key];
    rope.theta = optional(s, "rope_theta", rope.theta);
    if (!(rope.theta > 0)) throw Error("rope_theta must be positive");
    if (s.is_null()) return rope;
    const std::string type = s.value("rope_type", s.value("type", std::string("default")));
    if (type == "default") return rope;
    rope.factor = number(s, "factor");
    if (!(rope.factor > 0)) throw Error("rope_scaling: factor must be positive");
    if (type == "linear") {
      rope.scaling = Scaling::linear;
    } else if (type == "llama3") {
      rope.scaling = Scaling::llama3;
      rope.original_positions = number(s, "original_max_position_embeddings");
      rope.low_frequency_factor = number(s, "low_freq_factor");
      rope.high_frequency_factor = number(s, "high_freq_factor");
    } else if (type == "yarn") {
      rope.scaling = Scaling::yarn;
      rope.original_positions = optional(s, "original_max_position_embeddings",
                                         optional(config, "max_position_embeddings", 0));
      if (!(rope.original_positions > 0))
        throw Error("rope_scaling: yarn needs original_max_position_embeddings");
      rope.beta_fast = optional(s, "beta_fast", 32);
      rope.beta_slow = optional(s, "beta_slow", 1);
      rope.truncate = s.value("truncate", true);
      rope.attention_factor =
          optional(s, "attention_factor", yarn_attention_factor(s, rope.factor));
    } else {
      throw Error("rope_scaling: unknown rope_type '" + type +
                  "'; known are default, linear, llama3 and yarn");
    }
    return rope;
  }

  /// Angle per position of each rotated pair.            (D / 2)
  std::vector<double> inverse_frequencies(index_t head_dim) const {
    std::vector<double> f(static_cast<std::size_t>(head_dim / 2));
    for (std::size_t j = 0; j < f.size(); ++j)
      f[j] = scaled(std::pow(theta, -2.0 * double(j) / double(head_dim)), double(j), head_dim);
    return f;
  }

 private:
  static double number(const nlohmann::json& s, const char* key) {
    if (!s.contains(key) || !s[key].is_number())
      throw Error(std::string("rope_scaling: field '") + key + "' is missing or not a number");
    return s[key];
  }
  static double optional(const nlohmann::json& s, const char* key, double otherwise) {
    return !s.contains(key) || s[key].is_null() ? otherwise : number(s, key);
  }
  static double yarn_attention_factor(const nlohmann::json& s, double factor) {
    const auto scale = [&](double m) { return factor <= 1 ? 1 : 0.1 * m * std::log(factor) + 1; };
    const double m = optional(s, "mscale", 0), all = optional(s, "mscale_all_dim", 0);
    return m != 0 && all != 0 ? scale(m) / scale(all) : scale(1);
  }

  double scaled(double f, double j, index_t head_dim) const {
    constexpr double turn = 2 * std::numbers::pi;
    switch (scaling) {
      case Scaling::none:
        return f;
      case Scaling::linear:
        return f / factor;
      case Scaling::llama3: {
        const double wavelength = turn / f;
        if (wavelength > original_positions / low_frequency_factor) return f / factor;
        if (wavelength < original_positions / high_frequency_factor) return f;
        const double keep = (original_positions / wavelength - low_frequency_factor) /
                            (high_frequency_factor - low_frequency_factor);
        return (1 - keep) * f / factor + keep * f;
      }
      case Scaling::yarn: {
        // The pair that turns `rotations` times over the original positions.
        const auto pair = [&](double rotations) {
          return double(head_dim) * std::log(original_positions / (rotations * turn)) /
                 (2 * std::log(theta));
        };
        const double first = pair(beta_fast), last = pair(beta_slow);
        const double low = std::max(truncate ? std::floor(first) : first, 0.0);
        double high = std::min(truncate ? std::ceil(last) : last, double(head_dim - 1));
        if (low == high) high += 0.001;
        const double ramp = std::min(std::max((j - low) / (high - low), 0.0), 1.0);
        return f / factor * ramp + f * (1 - ramp);
      }
    }
    return f;
  }
};

}  // namespace dflash
