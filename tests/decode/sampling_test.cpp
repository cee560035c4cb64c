#include "dflash/decode/sampling.hpp"

#include <doctest/doctest.h>

#include <limits>

namespace sampling_test {

using namespace dflash;

constexpr float none = -std::numeric_limits<float>::infinity();

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  probabilities(std::span<const float>(logits), temperature, p);
  return p;
}

/// Chi-square of counts against probabilities, in standard deviations from its mean. Throws if
/// something impossible was counted.
double deviation(const std::vector<index_t>& counts, const std::vector<double>& p) {
  index_t total = 0, cells = 0;
  for (const index_t count : counts) total += count;
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (p[i] == 0) {
      REQUIRE(counts[i] == 0);
      continue;
    }
    const double expected = p[i] * double(total), difference = double(counts[i]) - expected;
    sum += difference * difference / expected;
    ++cells;
  }
  return (sum - double(cells - 1)) / std::sqrt(2.0 * double(cells - 1));
}

/// Next-token logits after `token`: a small language model.                        (V = 4)
std::vector<float> after(std::int32_t token, std::uint64_t model) {
  const Random random(model, std::uint64_t(token));
  std::vector<float> logits;
  for (std::uint64_t i = 0; i < 4; ++i) logits.push_back(float(1.2 * random.normal(i)));
  return logits;
}

TEST_CASE("probabilities sharpen with falling temperature") {
  const std::vector<float> logits{1, 3, none, 3, -2};
  const auto p = softmax(logits, 1), sharp = softmax(logits, 0.5);
  double sum = 0;
  for (const double x : p) sum += x;
  CHECK(sum == doctest::Approx(1));
  CHECK(p[1] / p[0] == doctest::Approx(std::exp(2.0)));
  CHECK(sharp[1] / sharp[0] == doctest::Approx(std::exp(4.0)));
  CHECK(p[2] == 0);
  CHECK(softmax(logits, 0) == std::vector<double>{0, 1, 0, 0, 0});
  CHECK(softmax({1e4f, 0, -1e4f}, 1) == std::vector<double>{1, 0, 0});
  CHECK_THROWS_AS(softmax({none, none}, 1), Error);
  CHECK_THROWS_AS(softmax({0, 1}, -1), Error);
  CHECK_THROWS_AS(softmax({}, 1), Error);
}

TEST_CASE("draw inverts the cumulative sum and never takes an impossible token") {
  const std::vector<double> weights{0, 1, 0, 2, 1, 0};
  CHECK(draw(weights, 0) == 1);
  CHECK(draw(weights, 0.2499) == 1);
  CHECK(draw(weights, 0.25) == 3);
  CHECK(draw(weights, 0.7499) == 3);
  CHECK(draw(weights, 0.75) == 4);
  CHECK(draw(weights, std::nextafter(1.0, 0.0)) == 4);
  CHECK_THROWS_AS(draw(std::vector<double>{0, 0}, 0.5), Error);
}

TEST_CASE("random numbers depend on seed, answer, position and use") {
  const SamplingRandom a(1, 0);
  CHECK(a.token(5) == SamplingRandom(1, 0).token(5));
  CHECK(a.token(5) != SamplingRandom(2, 0).token(5));
  CHECK(a.token(5) != SamplingRandom(1, 1).token(5));
  CHECK(a.token(5) != a.token(6));
  CHECK(a.token(5) != a.acceptance(5));
  CHECK(a.token(5) != a.proposal(5));
}

TEST_CASE("at temperature zero the verdict is that of greedy decoding") {
  const std::vector<float> target{0, 9, 1, /**/ 4, 0, 1, /**/ 0, 0, 7};  // 1, 0, 2
  const View<const float, 2> rows{target.data(), {3, 3}};
  const SamplingRandom random(1, 0);
  for (std::int32_t first = 0; first < 3; ++first)
    for (std::int32_t second = 0; second < 3; ++second) {
      std::vector<float> draft(6);
      draft[std::size_t(first)] = draft[std::size_t(3 + second)] = 1;
      const auto verdict =
          verify<float>(std::vector{first, second}, {draft.data(), {2, 3}}, 0, rows, 0, random, 10);
      const index_t accepted = first != 1 ? 0 : second != 0 ? 1 : 2;
      CHECK(verdict.accepted == accepted);
      CHECK(verdict.next == std::vector<std::int32_t>{1, 0, 2}[std::size_t(accepted)]);
    }
}

TEST_CASE("a proposed token stays as often as the distributions overlap") {
  const std::vector<float> target{1, 0, -1, 2, none}, draft{0, 2, none, 1, 0};
  for (const double temperature : {0.7, 1.0, 1.5}) {
    const auto p = softmax(target, temperature), q = softmax(draft, 1);
    double overlap = 0;
    for (std::size_t i = 0; i < p.size(); ++i) overlap += std::min(p[i], q[i]);
    std::vector<float> rows = target;
    rows.insert(rows.end(), target.begin(), target.end());
    index_t accepted = 0;
    std::vector<index_t> counts(5);
    constexpr index_t trials = 100'000;
    for (index_t trial = 0; trial < trials; ++trial) {
      const SamplingRandom random(7, std::uint64_t(trial));
      const std::vector<std::int32_t> proposed{draw(q, random.proposal(0))};
      const auto verdict = verify<float>(proposed, {draft.data(), {1, 5}}, 1, {rows.data(), {2, 5}},
                                         temperature, random, 0);
      accepted += verdict.accepted;
      ++counts[std::size_t(verdict.accepted == 1 ? proposed[0] : verdict.next)];
    }
    CHECK(std::abs(double(accepted) / trials - overlap) <
          5 * std::sqrt(overlap * (1 - overlap) / trials));
    CHECK(deviation(counts, p) < 5);
  }
}

TEST_CASE("whole answers are distributed as the target's own, whatever the draft proposes") {
  // Answers of four tokens in blocks of three proposals, which see the block's first token alone.
  constexpr std::int32_t first = 2;
  constexpr std::size_t length = 4, answers = 256;
  for (const double temperature : {1.0, 0.6})
    for (const double draft_temperature : {1.0, 2.0, 0.0}) {
      CAPTURE(temperature);
      CAPTURE(draft_temperature);
      std::vector<double> expected(answers, 1);
      for (std::size_t code = 0; code < answers; ++code)
        for (std::size_t i = 0, before = first, rest = code; i < length; ++i, rest /= 4) {
          expected[code] *= softmax(after(std::int32_t(before), 1), temperature)[rest % 4];
          before = rest % 4;
        }
      std::vector<index_t> counts(answers);
      for (std::uint64_t answer = 0; answer < 40'000; ++answer) {
        const SamplingRandom random(11, answer);
        std::vector<std::int32_t> tokens{first};
        while (tokens.size() <= length) {
          const std::int32_t start = tokens.back();
          const index_t position = index_t(tokens.size());
          std::vector<std::int32_t> proposed;
          std::vector<float> draft, target = after(start, 1);
          for (index_t slot = 0; slot < 3; ++slot) {
            const auto q = after(start, std::uint64_t(100 + slot));
            draft.insert(draft.end(), q.begin(), q.end());
            proposed.push_back(
                draw(softmax(q, draft_temperature), random.proposal(position + slot)));
            const auto p = after(proposed.back(), 1);
            target.insert(target.end(), p.begin(), p.end());
          }
          const auto verdict =
              verify<float>(proposed, {draft.data(), {3, 4}}, draft_temperature,
                            {target.data(), {4, 4}}, temperature, random, position);
          tokens.insert(tokens.end(), proposed.begin(), proposed.begin() + verdict.accepted);
          tokens.push_back(verdict.next);
        }
        std::size_t code = 0;
        for (std::size_t i = length; i > 0; --i) code = code * 4 + std::size_t(tokens[i]);
        ++counts[code];
      }
      CHECK(deviation(counts, expected) < 5);
    }
}

TEST_CASE("what the draft cannot have proposed is refused") {
  const std::vector<float> target{0, 1, 0, 1}, draft{none, 0};
  const SamplingRandom random(1, 0);
  CHECK_THROWS_AS(verify<float>(std::vector<std::int32_t>{0}, {draft.data(), {1, 2}}, 1,
                                {target.data(), {2, 2}}, 1, random, 0),
                  Error);
  CHECK_THROWS_AS(verify<float>(std::vector<std::int32_t>{1}, {draft.data(), {1, 2}}, 1,
                                {target.data(), {1, 2}}, 1, random, 0),
                  Error);
}

}  // namespace sampling_test
