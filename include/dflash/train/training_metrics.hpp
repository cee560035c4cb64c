#pragma once

#include <cstdint>
#include <span>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/host_vector.hpp"

namespace dflash {

/// Counts over blocks. They add, over micro-steps and ranks.
struct TrainingMetrics {
  HostVector<double> supervised, correct;  // (K): per slot of a block
  double tokens = 0;                       // of the samples; whoever packs them counts
  double blocks = 0;                       // with a supervised slot
  double accepted = 0;  // over these, 1 + the leading run of right predictions of slots 1, 2, ...

  TrainingMetrics() = default;
  explicit TrainingMetrics(index_t block_size)
      : supervised(std::size_t(block_size)), correct(std::size_t(block_size)) {}

  /// Counts a block.                                    weight, right (K)
  void add_block(std::span<const float> weight, std::span<const std::uint8_t> right) {
    bool any = false, leading = true;
    double run = 1;
    for (std::size_t k = 0; k < weight.size(); ++k) {
      const bool learns = weight[k] > 0, hit = learns && right[k] != 0;
      supervised[k] += learns;
      correct[k] += hit;
      any = any || learns;
      leading = leading && (k == 0 || hit);
      if (k > 0 && leading) run += 1;
    }
    if (any) {
      blocks += 1;
      accepted += run;
    }
  }

  double supervised_slots() const { return total(supervised); }
  double correct_slots() const { return total(correct); }
  /// Share of supervised slots that were predicted right; 0 without any.
  double accuracy() const {
    const double n = supervised_slots();
    return n > 0 ? correct_slots() / n : 0;
  }
  /// The same of slot k.
  double accuracy(index_t k) const {
    const double n = supervised.at(std::size_t(k));
    return n > 0 ? correct[std::size_t(k)] / n : 0;
  }
  /// Expected acceptance length: what a verified block would yield, the token of the target's own
  /// included; 0 without any block.
  double acceptance() const { return blocks > 0 ? accepted / blocks : 0; }

 private:
  static double total(const HostVector<double>& counts) {
    double sum = 0;
    for (const double count : counts) sum += count;
    return sum;
  }
};

/// The loss is numerator / denominator; both are kept apart so that parts of a step can be summed.
struct LossResult {
  double numerator = 0, denominator = 0;
  TrainingMetrics metrics;

  LossResult() = default;
  explicit LossResult(index_t block_size) : metrics(block_size) {}

  double loss() const { return numerator / denominator; }

  /// All numbers side by side, for a sum over ranks: 5 + 2 K.
  HostVector<double> flat() const {
    HostVector<double> all{numerator, denominator, metrics.tokens, metrics.blocks,
                           metrics.accepted};
    all.insert(all.end(), metrics.supervised.begin(), metrics.supervised.end());
    all.insert(all.end(), metrics.correct.begin(), metrics.correct.end());
    return all;
  }

  static LossResult from_flat(std::span<const double> all) {
    expects(all.size() >= 5 && all.size() % 2 == 1, "LossResult: not a flattened result");
    const std::size_t slots = (all.size() - 5) / 2;
    LossResult result;
    result.numerator = all[0];
    result.denominator = all[1];
    result.metrics.tokens = all[2];
    result.metrics.blocks = all[3];
    result.metrics.accepted = all[4];
    result.metrics.supervised.assign(all.begin() + 5, all.begin() + 5 + index_t(slots));
    result.metrics.correct.assign(all.begin() + 5 + index_t(slots), all.end());
    return result;
  }

  /// Adds. A default-constructed result takes the other's block size.
  LossResult& operator+=(const LossResult& other) {
    if (metrics.supervised.empty())
      metrics = TrainingMetrics(index_t(other.metrics.supervised.size()));
    expects(other.metrics.supervised.empty() ||
                other.metrics.supervised.size() == metrics.supervised.size(),
            "LossResult: block sizes differ");
    numerator += other.numerator;
    denominator += other.denominator;
    metrics.tokens += other.metrics.tokens;
    metrics.blocks += other.metrics.blocks;
    metrics.accepted += other.metrics.accepted;
    for (std::size_t k = 0; k < other.metrics.supervised.size(); ++k) {
      metrics.supervised[k] += other.metrics.supervised[k];
      metrics.correct[k] += other.metrics.correct[k];
    }
    return *this;
  }
};

}  // namespace dflash
