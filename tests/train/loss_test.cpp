#include "dflash/train/loss.hpp"

#include <doctest/doctest.h>

#include <limits>

#include "dflash/core/random.hpp"

namespace loss_test {

using namespace dflash;

constexpr LossType dpace_types[] = {LossType::dpace, LossType::dpace_cumulative,
                                    LossType::dpace_continuation};

struct Case {
  index_t block_size;
  std::vector<float> weights;
  std::vector<double> nll;
  std::vector<std::uint8_t> correct;
};

Case random_case(index_t blocks, index_t block_size, std::uint64_t seed) {
  const Random random(seed);
  Case c{block_size, {}, {}, {}};
  for (index_t i = 0; i < blocks * block_size; ++i) {
    const auto at = std::uint64_t(i);
    c.weights.push_back(i % block_size > 0 && random.uniform(3 * at) < 0.7 ? 1.0f : 0.0f);
    c.nll.push_back(3 * random.uniform(3 * at + 1));
    c.correct.push_back(random.uniform(3 * at + 2) < 0.5);
  }
  return c;
}

LossResult run(const Case& c, const LossOptions& options, index_t samples,
               std::vector<double>& factors) {
  factors.resize(c.weights.size());
  return block_loss(c.weights, c.nll, c.correct, c.block_size, samples, options, factors);
}

/// The weight of slot k of a block, straight from the definition: every sum and product anew.
double naive_weight(const Case& c, std::size_t first, std::size_t k, const LossOptions& o) {
  const auto slots = std::size_t(c.block_size);
  const auto confidence = [&](std::size_t i) {
    double product = 1;
    for (std::size_t j = 0; j <= i; ++j)
      if (c.weights[first + j] > 0)
        product *= (1 - o.dpace_alpha) * std::exp(-c.nll[first + j]) + o.dpace_alpha;
    return product;
  };
  double rest = 0;
  for (std::size_t i = k; i < slots; ++i) rest += confidence(i) * double(c.weights[first + i]);
  if (o.type == LossType::dpace_cumulative) return confidence(k);
  return o.type == LossType::dpace ? rest : rest / confidence(k);
}

TEST_CASE("D-PACE weighs slots as in the worked example") {
  const std::vector<float> w{0, 1, 1, 0, 1};
  std::vector<double> nll;
  for (const double q : {.9, .5, .25, .7, .8}) nll.push_back(-std::log(q));
  const std::vector<std::uint8_t> correct(5, 0);
  const double numerators[] = {2.46600169, 1.26382455, 4.37336229};
  const std::vector<double> weights[] = {
      {0, 1.640625, .890625, 0, .421875}, {0, .75, .46875, 0, .421875}, {0, 2.1875, 1.9, 0, 1}};
  for (int i = 0; i < 3; ++i) {
    LossOptions options;
    options.type = dpace_types[i];
    std::vector<double> factors(5);
    const auto r = block_loss(w, nll, correct, 5, 3, options, factors);
    CHECK(r.numerator == doctest::Approx(numerators[i]).epsilon(1e-8));
    CHECK(r.denominator == 3);
    for (std::size_t k = 0; k < 5; ++k)
      CHECK(factors[k] == doctest::Approx(weights[i][k]).epsilon(1e-12));
  }
}

TEST_CASE("D-PACE agrees with its definition evaluated naively") {
  for (const LossType type : dpace_types)
    for (const double alpha : {0.0, 0.3, 1.0}) {
      LossOptions options;
      options.type = type;
      options.dpace_alpha = alpha;
      const Case c = random_case(6, 7, 11);
      std::vector<double> factors;
      const auto r = run(c, options, 2, factors);
      double numerator = 0;
      for (std::size_t i = 0; i < c.weights.size(); ++i) {
        const double expected = c.weights[i] * naive_weight(c, i / 7 * 7, i % 7, options);
        CHECK(factors[i] == doctest::Approx(expected).epsilon(1e-12));
        numerator += expected * c.nll[i];
      }
      CHECK(r.numerator == doctest::Approx(numerator).epsilon(1e-12));
      CHECK(r.denominator == 2);
    }
}

TEST_CASE("a hopeless D-PACE block stays finite") {
  LossOptions options;
  options.type = LossType::dpace_continuation;
  options.dpace_alpha = 0;
  const Case c{3, {0, 1, 1}, {0, 800, 900}, {0, 0, 0}};
  std::vector<double> factors;
  const auto r = run(c, options, 1, factors);
  CHECK(std::isfinite(r.numerator));
}

TEST_CASE("plain cross entropy is a weighted sum, and gamma lets later slots count less") {
  const Case c = random_case(5, 16, 3);
  std::vector<double> factors;
  for (const double gamma : {0.0, -1.0, 7.0}) {
    LossOptions options;
    options.gamma = gamma;
    const auto r = run(c, options, 9, factors);
    double numerator = 0, denominator = 0;
    for (std::size_t i = 0; i < c.weights.size(); ++i) {
      const double k = double(i % 16);
      const double weight =
          c.weights[i] * (gamma > 0 ? std::exp(-std::max(k - 1, 0.0) / gamma) : 1);
      CHECK(factors[i] == doctest::Approx(weight).epsilon(1e-14));
      numerator += weight * c.nll[i];
      denominator += weight;
    }
    CHECK(r.numerator == doctest::Approx(numerator).epsilon(1e-12));
    CHECK(r.denominator == doctest::Approx(denominator).epsilon(1e-12));
    CHECK(loss_denominator(c.weights, 16, 9, options) == r.denominator);
  }
  LossOptions seven;
  seven.gamma = 7;
  CHECK(seven.decay(0) == 1);
  CHECK(seven.decay(1) == 1);
  CHECK(seven.decay(2) == doctest::Approx(.866878).epsilon(1e-6));
  CHECK(seven.decay(15) == doctest::Approx(.135335).epsilon(1e-5));
  seven.type = LossType::dpace;
  CHECK(seven.decay(15) == 1);
}

TEST_CASE("factors are the derivative of the numerator by central differences") {
  // D-PACE weights carry no gradient, so its derivative is that of the sum with frozen weights.
  Case c = random_case(4, 6, 5);
  LossOptions options;
  options.gamma = 4;
  std::vector<double> factors, ignored;
  run(c, options, 1, factors);
  for (std::size_t i = 0; i < c.nll.size(); ++i) {
    const double h = 1e-5, middle = c.nll[i];
    c.nll[i] = middle + h;
    const double up = run(c, options, 1, ignored).numerator;
    c.nll[i] = middle - h;
    const double down = run(c, options, 1, ignored).numerator;
    c.nll[i] = middle;
    CHECK(factors[i] == doctest::Approx((up - down) / (2 * h)).epsilon(1e-8));
  }
}

TEST_CASE("what lies in slots without weight is not read") {
  Case c = random_case(4, 5, 8);
  for (const LossType type : {LossType::plain, LossType::dpace, LossType::dpace_cumulative,
                              LossType::dpace_continuation}) {
    LossOptions options;
    options.type = type;
    std::vector<double> factors, other;
    const auto before = run(c, options, 1, factors);
    Case poisoned = c;
    for (std::size_t i = 0; i < c.weights.size(); ++i)
      if (c.weights[i] == 0) {
        poisoned.nll[i] = std::numeric_limits<double>::quiet_NaN();
        poisoned.correct[i] ^= 1;
      }
    const auto after = run(poisoned, options, 1, other);
    CHECK(after.flat() == before.flat());
    for (std::size_t i = 0; i < factors.size(); ++i)
      CHECK(other[i] == (c.weights[i] > 0 ? factors[i] : 0));
  }
}

TEST_CASE("parts of a batch add up to the whole") {
  const Case c = random_case(6, 5, 21);
  for (const LossType type : {LossType::plain, LossType::dpace}) {
    LossOptions options;
    options.type = type;
    options.gamma = 4;
    std::vector<double> factors;
    const auto whole = run(c, options, 2, factors).flat();
    LossResult sum;
    for (std::size_t part = 0; part < 2; ++part) {
      const std::size_t first = part * 10, count = part == 0 ? 10 : 20;
      std::vector<double> piece(count);
      sum += block_loss(
          std::span(c.weights).subspan(first, count), std::span(c.nll).subspan(first, count),
          std::span(c.correct).subspan(first, count), 5, part == 0 ? 2 : 0, options, piece);
      for (std::size_t i = 0; i < count; ++i) CHECK(piece[i] == factors[first + i]);
    }
    const auto parts = sum.flat();
    for (std::size_t i = 0; i < whole.size(); ++i) CHECK(parts[i] == doctest::Approx(whole[i]));
  }
}

TEST_CASE("unknown names and values out of range are errors that say so") {
  CHECK(loss_types.named("dflash") == LossType::plain);
  CHECK(loss_types.named("dpace-continuation-value-only") == LossType::dpace_continuation);
  CHECK_THROWS_WITH_AS(loss_types.named("mse"),
                       "loss_type 'mse' is unknown; known are dflash, dpace, "
                       "dpace-cumulative-confidence-only and dpace-continuation-value-only",
                       Error);
  LossOptions options;
  CHECK_NOTHROW(options.check());
  options.dpace_alpha = 1.5;
  CHECK_THROWS_WITH_AS(options.check(), "dpace_alpha must be in [0, 1], got 1.5", Error);
  options.dpace_alpha = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(options.check(), Error);
}

}  // namespace loss_test
