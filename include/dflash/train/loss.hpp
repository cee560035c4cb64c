#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "dflash/core/choices.hpp"
#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"
#include "dflash/train/number_text.hpp"
#include "dflash/train/training_metrics.hpp"

namespace dflash {

/// How the slots of a block are weighted: all alike (with an optional decay), or by D-PACE, which
/// estimates from the draft's own confidence what a slot adds to the acceptance length.
enum class LossType { plain, dpace, dpace_cumulative, dpace_continuation };

inline constexpr auto loss_types = choices<LossType>(
    "loss_type", {{"dflash", LossType::plain},
                  {"dpace", LossType::dpace},
                  {"dpace-cumulative-confidence-only", LossType::dpace_cumulative},
                  {"dpace-continuation-value-only", LossType::dpace_continuation}});

struct LossOptions {
  LossType type = LossType::plain;
  double gamma = 0;          // plain: slot k weighs exp(-(k - 1) / gamma); off unless above 0
  double dpace_alpha = 0.5;  // D-PACE: 0 trusts the draft's confidence as it is, 1 ignores it
  index_t chunk_rows = 0;    // supervised rows that the head takes at once, in whole blocks; 0:
                             // as many as suit the backend

  /// Error if an option is out of range.
  void check() const {
    if (!(dpace_alpha >= 0 && dpace_alpha <= 1))
      throw Error("dpace_alpha must be in [0, 1], got " + number_text(dpace_alpha));
    if (chunk_rows < 0)
      throw Error("the loss's chunk must not have fewer than 0 rows, got " +
                  std::to_string(chunk_rows));
  }

  /// chunk_rows of a backend: its head_rows if it has a wish.
  template <class B>
  index_t rows_at_once() const {
    if (chunk_rows > 0) return chunk_rows;
    if constexpr (requires { B::head_rows; })
      return B::head_rows;
    else
      return 1024;
  }

  bool dpace() const { return type != LossType::plain; }

  /// The decay of slot k of a block.
  double decay(index_t k) const {
    return dpace() || !(gamma > 0) ? 1 : std::exp(-double(std::max<index_t>(k - 1, 0)) / gamma);
  }
};

/// What the loss's numerator is to be divided by, of these blocks and samples: the sum of decayed
/// weights, or with D-PACE the number of samples.                          weights (N * K)
inline double loss_denominator(std::span<const float> weights, index_t block_size, index_t samples,
                               const LossOptions& options) {
  if (options.dpace()) return double(samples);
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i)
    sum += double(weights[i]) * options.decay(index_t(i) % block_size);
  return sum;
}

namespace detail {

/// The D-PACE weight of each slot of one block.    weight, nll, out (K)
inline void dpace_weights(std::span<const float> weight, std::span<const double> nll,
                          const LossOptions& options, std::span<double> out) {
  const std::size_t slots = weight.size();
  const double alpha = options.dpace_alpha;
  double confidence = 1;
  for (std::size_t k = 0; k < slots; ++k) {
    if (weight[k] > 0) confidence *= (1 - alpha) * std::exp(-nll[k]) + alpha;
    out[k] = confidence;
  }
  if (options.type == LossType::dpace_cumulative) return;
  double rest = 0;
  for (std::size_t k = slots; k-- > 0;) {
    const double prefix = out[k];
    rest += prefix * double(weight[k]);
    out[k] = options.type == LossType::dpace
                 ? rest
                 : rest / std::max(prefix, std::numeric_limits<double>::min());
  }
}

}  // namespace detail

/// The loss of whole blocks, from the negative log likelihood of each slot. `factors` receives
/// d numerator / d nll (weights carry no gradient). Slots without weight are not read.
///                                  weights, nll, correct, factors (N * K)
inline LossResult block_loss(std::span<const float> weights, std::span<const double> nll,
                             std::span<const std::uint8_t> correct, index_t block_size,
                             index_t samples, const LossOptions& options,
                             std::span<double> factors) {
  const std::size_t slots(block_size), n = weights.size();
  expects(block_size >= 1 && n % slots == 0, "block_loss: the weights are not whole blocks");
  expects(nll.size() == n && correct.size() == n && factors.size() == n,
          "block_loss: sizes differ");
  LossResult result(block_size);
  result.denominator = loss_denominator(weights, block_size, samples, options);
  for (std::size_t first = 0; first < n; first += slots) {
    const auto weight = weights.subspan(first, slots);
    const auto factor = factors.subspan(first, slots);
    if (options.dpace())
      detail::dpace_weights(weight, nll.subspan(first, slots), options, factor);
    else
      for (std::size_t k = 0; k < slots; ++k) factor[k] = options.decay(index_t(k));
    for (std::size_t k = 0; k < slots; ++k) {
      factor[k] *= double(weight[k]);
      if (weight[k] > 0) result.numerator += nll[first + k] * factor[k];
    }
    result.metrics.add_block(weight, correct.subspan(first, slots));
  }
  return result;
}

}  // namespace dflash
