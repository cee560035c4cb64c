#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/core/random.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// The random numbers of one answer: pure functions of (seed, answer, position), uniform in [0, 1).
/// Numbers that a rejected token used up decided nothing that stays, so its position uses them
/// again.
class SamplingRandom {
 public:
  SamplingRandom(std::uint64_t seed, std::uint64_t answer) : random_(seed, answer) {}

  double proposal(index_t position) const { return at(position, 0); }    // draws a proposed token
  double acceptance(index_t position) const { return at(position, 1); }  // keeps or rejects it
  double token(index_t position) const { return at(position, 2); }       // draws the target's own

 private:
  double at(index_t position, std::uint64_t use) const {
    return random_.uniform(3 * std::uint64_t(position) + use);
  }

  Random random_;
};

/// p = softmax(logits / temperature); at temperature 0 all of it lies on the first largest logit.
///                                                                              logits, p (V)
template <class T>
void probabilities(std::span<const T> logits, double temperature, std::vector<double>& p) {
  expects(!logits.empty() && temperature >= 0,
          "probabilities: no logits, or a negative temperature");
  const auto largest = std::max_element(logits.begin(), logits.end());
  const double top = double(*largest);
  expects(std::isfinite(top), "probabilities: the largest logit is not finite");
  p.assign(logits.size(), 0);
  if (temperature == 0) {
    p[std::size_t(largest - logits.begin())] = 1;
    return;
  }
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i)
    sum += p[i] = std::exp((double(logits[i]) - top) / temperature);
  for (double& x : p) x /= sum;
}

/// The token at which the running sum of the weights passes the share u of their total; one of
/// weight 0 is never drawn.                                                        weights (V)
inline std::int32_t draw(std::span<const double> weights, double u) {
  double total = 0;
  for (const double w : weights) total += w;
  expects(total > 0, "draw: all weights are zero");
  double sum = 0;
  std::int32_t drawn = -1;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!(weights[i] > 0)) continue;
    drawn = std::int32_t(i);
    sum += weights[i];
    if (sum > u * total) break;
  }
  return drawn;
}

/// What the target says to a block: how many proposed tokens stay, and the token after them.
struct Verdict {
  index_t accepted;
  std::int32_t next;
};

/// Speculative sampling without loss (Leviathan et al., arXiv:2211.17192): a token that the draft
/// drew from q stays with probability min(1, p / q); the first that does not is replaced by a draw
/// from the positive part of p - q. So every token is distributed as the target's own, p. The draft
/// drew at its own temperature, maybe 0; `position` is where proposed(0) stands.
///                             proposed (m)  draft_logits (m, V)  target_logits (m + 1, V)
template <class T>
Verdict verify(std::span<const std::int32_t> proposed, View<const T, 2> draft_logits,
               double draft_temperature, View<const T, 2> target_logits, double temperature,
               const SamplingRandom& random, index_t position) {
  const index_t m = index_t(proposed.size());
  expects(draft_logits.shape[0] == m && target_logits.shape[0] == m + 1 &&
              (m == 0 || draft_logits.shape[1] == target_logits.shape[1]),
          "verify: shapes differ");
  const auto row = [](View<const T, 2> v, index_t i) {
    return std::span<const T>(v.data + i * v.shape[1], std::size_t(v.shape[1]));
  };
  std::vector<double> p, q;
  for (index_t i = 0; i < m; ++i) {
    probabilities(row(target_logits, i), temperature, p);
    probabilities(row(draft_logits, i), draft_temperature, q);
    const std::size_t token = std::size_t(proposed[std::size_t(i)]);
    expects(token < q.size() && q[token] > 0, "verify: the draft cannot have drawn this token");
    if (random.acceptance(position + i) * q[token] < p[token]) continue;
    double left = 0;
    for (std::size_t t = 0; t < q.size(); ++t) left += q[t] = std::max(p[t] - q[t], 0.0);
    // Equal distributions may differ by a rounding alone: then nothing is left, and p will do.
    return {i, draw(left > 0 ? q : p, random.token(position + i))};
  }
  probabilities(row(target_logits, m), temperature, p);
  return {m, draw(p, random.token(position + m))};
}

}  // namespace dflash
