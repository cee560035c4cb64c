#include "dflash/train/draft_loss.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "dflash/core/random.hpp"
#include "dflash/cpu.hpp"

namespace draft_loss_test {

using namespace dflash;

constexpr index_t blocks = 6, block_size = 5, width = 4, vocabulary = 11;

struct Case {
  std::vector<double> head, hidden;
  std::vector<std::int32_t> labels;
  std::vector<float> weights;
};

Case random_case() {
  const Random random(17);
  Case c;
  for (index_t i = 0; i < vocabulary * width; ++i)
    c.head.push_back(random.normal(std::uint64_t(i)));
  for (index_t i = 0; i < blocks * block_size; ++i) {
    const auto at = std::uint64_t(1000 + 10 * i);
    for (index_t j = 0; j < width; ++j) c.hidden.push_back(random.normal(at + std::uint64_t(j)));
    c.labels.push_back(std::int32_t(random.integer(at + 5) % vocabulary));
    // Block 2 learns nothing.
    const bool learns = i % block_size > 0 && i / block_size != 2 && random.uniform(at + 6) < 0.7;
    c.weights.push_back(learns ? 1.0f : 0.0f);
  }
  return c;
}

template <class T>
struct Output {
  LossResult result;
  std::vector<T> doutput;
};

template <class T>
Output<T> run(const Case& c, const LossOptions& options, index_t samples = 2) {
  CpuBackend<T> backend;
  std::vector<T> head(c.head.begin(), c.head.end()), hidden(c.hidden.begin(), c.hidden.end()),
      doutput(hidden.size(), T(7));
  const auto result =
      draft_loss(backend, {head.data(), {vocabulary, width}},
                 {hidden.data(), {index_t(c.labels.size()), width}}, c.labels, c.weights,
                 block_size, samples, options, {doutput.data(), {index_t(c.labels.size()), width}});
  return {result, doutput};
}

/// Negative log likelihood of every slot, from all logits at once.
std::vector<double> naive_nll(const Case& c, std::vector<std::uint8_t>& correct) {
  std::vector<double> nll;
  correct.clear();
  for (std::size_t i = 0; i < c.labels.size(); ++i) {
    std::vector<double> logit(vocabulary, 0.0);
    double sum = 0;
    std::size_t best = 0;
    for (std::size_t v = 0; v < logit.size(); ++v) {
      for (std::size_t j = 0; j < width; ++j)
        logit[v] += c.hidden[i * width + j] * c.head[v * width + j];
      sum += std::exp(logit[v]);
      if (logit[v] > logit[best]) best = v;
    }
    nll.push_back(std::log(sum) - logit[std::size_t(c.labels[i])]);
    correct.push_back(best == std::size_t(c.labels[i]));
  }
  return nll;
}

constexpr LossType all_types[] = {LossType::plain, LossType::dpace, LossType::dpace_cumulative,
                                  LossType::dpace_continuation};

TEST_CASE("the loss is that of all logits") {
  const Case c = random_case();
  std::vector<std::uint8_t> correct;
  const auto nll = naive_nll(c, correct);
  for (const LossType type : all_types) {
    LossOptions options;
    options.type = type;
    options.gamma = 3;
    std::vector<double> factors(c.weights.size());
    const auto expected =
        block_loss(c.weights, nll, correct, block_size, 2, options, factors).flat();
    const auto actual = run<double>(c, options).result.flat();
    REQUIRE(actual.size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i)
      CHECK(actual[i] == doctest::Approx(expected[i]).epsilon(1e-12));
  }
}

TEST_CASE("the gradient of the numerator agrees with central differences") {
  Case c = random_case();
  LossOptions options;
  options.gamma = 3;
  const auto gradient = run<double>(c, options).doutput;
  for (std::size_t i = 0; i < c.hidden.size(); ++i) {
    const double h = 1e-5, middle = c.hidden[i];
    c.hidden[i] = middle + h;
    const double up = run<double>(c, options).result.numerator;
    c.hidden[i] = middle - h;
    const double down = run<double>(c, options).result.numerator;
    c.hidden[i] = middle;
    CHECK(gradient[i] == doctest::Approx((up - down) / (2 * h)).epsilon(1e-7).scale(1));
  }
}

TEST_CASE("the gradient of D-PACE is that of the sum with its weights frozen") {
  Case c = random_case();
  std::vector<std::uint8_t> correct;
  const auto nll = naive_nll(c, correct);
  for (const LossType type : all_types) {
    LossOptions options;
    options.type = type;
    std::vector<double> factors(c.weights.size());
    block_loss(c.weights, nll, correct, block_size, 2, options, factors);
    const auto gradient = run<double>(c, options).doutput;
    for (std::size_t i = 0; i < c.hidden.size(); i += 3) {
      const auto frozen = [&](double x) {
        Case moved = c;
        moved.hidden[i] = x;
        std::vector<std::uint8_t> ignored;
        const auto at = naive_nll(moved, ignored);
        double sum = 0;
        for (std::size_t k = 0; k < at.size(); ++k) sum += factors[k] * at[k];
        return sum;
      };
      const double h = 1e-5;
      const double slope = (frozen(c.hidden[i] + h) - frozen(c.hidden[i] - h)) / (2 * h);
      CHECK(gradient[i] == doctest::Approx(slope).epsilon(1e-7).scale(1));
    }
  }
}

TEST_CASE("the size of the chunks changes nothing, in float bit for bit") {
  const Case c = random_case();
  for (const LossType type : all_types) {
    LossOptions options;
    options.type = type;
    const auto whole = run<float>(c, options);
    for (const index_t rows : {1, 3, 7, 12}) {
      options.chunk_rows = rows;
      const auto chunked = run<float>(c, options);
      CHECK(chunked.doutput == whole.doutput);
      CHECK(chunked.result.numerator == doctest::Approx(whole.result.numerator).epsilon(1e-14));
      CHECK(chunked.result.denominator == whole.result.denominator);
      CHECK(chunked.result.metrics.correct == whole.result.metrics.correct);
    }
  }
}

TEST_CASE("rows without weight get no gradient and are not looked at") {
  Case c = random_case();
  const auto before = run<double>(c, {});
  for (std::size_t i = 0; i < c.weights.size(); ++i) {
    if (c.weights[i] > 0) continue;
    for (std::size_t j = 0; j < width; ++j) {
      CHECK(before.doutput[i * width + j] == 0);
      c.hidden[i * width + j] = std::numeric_limits<double>::quiet_NaN();
    }
    c.labels[i] = -1;
  }
  const auto after = run<double>(c, {});
  CHECK(after.result.flat() == before.result.flat());
  CHECK(after.doutput == before.doutput);
}

TEST_CASE("a rank may hold no block, and a batch no supervised slot") {
  const Case none;
  LossOptions dpace;
  dpace.type = LossType::dpace;
  CHECK(run<float>(none, {}).result.denominator == 0);
  CHECK(run<float>(none, dpace, 3).result.denominator == 3);
  Case idle = random_case();
  idle.weights.assign(idle.weights.size(), 0.0f);
  const auto output = run<float>(idle, {});
  CHECK(output.result.numerator == 0);
  CHECK(output.result.denominator == 0);
  CHECK(output.doutput == std::vector<float>(output.doutput.size(), 0.0f));
}

TEST_CASE("a label outside the vocabulary is an error that names its place") {
  Case c = random_case();
  for (std::size_t i = 0; i < c.labels.size(); ++i)
    if (c.weights[i] > 0 && i > 7) {
      c.labels[i] = vocabulary;
      CHECK_THROWS_WITH_AS(
          run<float>(c, {}),
          ("label 11 of block " + std::to_string(i / block_size) + ", slot " +
           std::to_string(i % block_size) + " is outside the head's vocabulary of 11")
              .c_str(),
          Error);
      break;
    }
}

}  // namespace draft_loss_test
