#pragma once

#include <cmath>
#include <numbers>
#include <string>

#include "dflash/core/choices.hpp"
#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"
#include "dflash/train/number_text.hpp"

namespace dflash {

/// The learning rate of every optimizer step, in closed form: a linear warm-up, then one of
/// - cosine: half a period down to zero at `total` (arXiv:1608.03983),
/// - constant: the peak for ever,
/// - wsd: the peak, and over the last `decay_steps` steps down to zero (arXiv:2405.18392).
struct Schedule {
  enum class Kind { cosine, constant, wsd };
  enum class Decay { linear, one_minus_sqrt };  // of wsd

  Kind kind = Kind::cosine;
  double peak = 0;
  index_t warmup = 0, total = 0;  // steps
  index_t decay_steps = 0;
  Decay decay = Decay::linear;

  /// How many of `total` steps warm up.
  static index_t warmup_steps(double ratio, index_t total) {
    return index_t(ratio * double(total));
  }

  static constexpr auto kinds = choices<Kind>(
      "lr_scheduler", {{"cosine", Kind::cosine}, {"constant", Kind::constant}, {"wsd", Kind::wsd}});
  static constexpr auto decays =
      choices<Decay>("lr_decay", {{"linear", Decay::linear}, {"1-sqrt", Decay::one_minus_sqrt}});

  /// Error if the numbers make no schedule.
  void check() const {
    const auto must = [](bool ok, const std::string& what, const std::string& value) {
      if (!ok) throw Error("schedule: " + what + ", got " + value);
    };
    must(std::isfinite(peak) && peak >= 0, "the learning rate must be at least 0",
         number_text(peak));
    must(total >= 1, "the number of steps must be at least 1", std::to_string(total));
    must(warmup >= 0 && warmup < total,
         "the warm-up must be shorter than the " + std::to_string(total) + " steps",
         std::to_string(warmup));
    must(kind != Kind::wsd || (decay_steps >= 0 && decay_steps <= total - warmup),
         "warm-up and decay must fit into the " + std::to_string(total) + " steps",
         std::to_string(warmup) + " and " + std::to_string(decay_steps));
  }

  /// The rate of optimizer step `step`, counted from 0.
  double operator()(index_t step) const {
    if (step < warmup) return peak * double(step + 1) / double(warmup);
    if (kind == Kind::constant) return peak;
    if (step >= total) return 0;
    if (kind == Kind::cosine) {
      const double done = double(step - warmup) / double(total - warmup);
      return peak * 0.5 * (1 + std::cos(std::numbers::pi * done));
    }
    const index_t stable_end = total - decay_steps;
    if (step < stable_end) return peak;
    const double done = double(step - stable_end) / double(decay_steps);
    return peak * (1 - (decay == Decay::linear ? done : std::sqrt(done)));
  }
};

}  // namespace dflash
