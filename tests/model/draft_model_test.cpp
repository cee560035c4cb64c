#include "dflash/model/draft_model.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "cpu/wide_backend.hpp"
#include "model/draft_fixture.hpp"

namespace draft_model_test {

using namespace dflash;

/// Central differences of the loss's numerator over every weight. D-PACE's weights carry no
/// gradient, so only the plain loss can be differenced.
void check_gradients(const DraftConfig& config) {
  DraftProblem<double> p(config, random_samples(config, {9, 2, 13}, 1), 4, {.gamma = 4});
  auto gradients = zero_gradients(p.cpu, config);
  p.step(gradients);
  for (const auto& slot : p.weights.slots()) {
    CAPTURE(slot.name);
    double top = 0, worst = 0;
    for (index_t i = slot.offset; i < slot.offset + slot.size; ++i) {
      double& w = p.weights.flat().data[i];
      const double old = w, step = 1e-5;
      w = old + step;
      const double up = p.numerator();
      w = old - step;
      const double down = p.numerator();
      w = old;
      const double expected = (up - down) / (2 * step);
      top = std::max(top, std::abs(expected));
      worst = std::max(worst, std::abs(gradients.flat().data[i] - expected));
    }
    CHECK(top > 1e-4);  // every weight matters
    CHECK(worst < 2e-7 * std::max(top, 1.0));
  }
}

TEST_CASE("DraftModel's backward agrees with central differences") {
  SUBCASE("plain") { check_gradients(small_config()); }
  SUBCASE("biases and sliding layers") { check_gradients(small_config(true, true)); }
}

TEST_CASE("DraftModel's backward adds to gradients that are not zero") {
  const auto config = small_config(true, true);
  DraftProblem<double> p(config, random_samples(config, {11, 8}, 2), 5);
  auto once = zero_gradients(p.cpu, config), twice = zero_gradients(p.cpu, config);
  p.step(once);
  p.step(twice);
  p.step(twice);
  for (index_t i = 0; i < once.flat().size(); ++i)
    CHECK(twice.flat().data[i] == doctest::Approx(2 * once.flat().data[i]).epsilon(1e-12));
}

TEST_CASE("DraftModel's backward writes what it would add to zeros") {
  const auto config = small_config(true, true);
  DraftProblem<double> p(config, random_samples(config, {11, 8}, 2), 5);
  auto added = zero_gradients(p.cpu, config);
  Gradients<CpuBackend<double>> written(p.cpu, config);
  fill(p.cpu, written.flat(), NAN);
  p.step(added);
  p.step(written, IgnoreBuckets{}, Result::written);
  for (index_t i = 0; i < added.flat().size(); ++i)
    CHECK(written.flat().data[i] == added.flat().data[i]);
}

TEST_CASE("Backward tells when a bucket is final: nothing is added to it afterwards") {
  const auto config = small_config(true, true);
  DraftProblem<double> p(config, random_samples(config, {11, 8}, 2), 5);
  auto gradients = zero_gradients(p.cpu, config);
  const auto buckets = gradient_buckets(config, 2);
  std::vector<std::vector<double>> seen;
  p.step(gradients, [&](index_t i) {
    REQUIRE(i == index_t(seen.size()));
    const auto final = gradients.flat().rows(buckets.at(std::size_t(i)));
    seen.emplace_back(final.data, final.data + final.size());
  });
  REQUIRE(seen.size() == buckets.size());
  index_t end = gradients.flat().size();
  for (std::size_t i = 0; i < buckets.size(); ++i) {
    CHECK(buckets[i].end == end);
    end = buckets[i].begin;
    CHECK(std::equal(seen[i].begin(), seen[i].end(), gradients.flat().data + buckets[i].begin));
  }
  CHECK(end == 0);
  CHECK(gradient_buckets(config, 1).size() == 1);
}

TEST_CASE("Nothing behind an anchor reaches its block: not one bit moves") {
  const auto config = small_config(false, true);
  DraftProblem<float> p(config, random_samples(config, {21, 17}, 4), 6);
  const auto before = p.output();
  const index_t k = config.block_size, hidden = config.shape.hidden;
  index_t block_at = 0;
  for (std::size_t s = 0; s < p.samples().size(); ++s) {
    const Blocks blocks = p.blocks()[s];
    for (index_t n = 0; n < blocks.count(); ++n, ++block_at) {
      const index_t anchor = blocks.anchors[std::size_t(n)];
      DraftProblem<float> other(config, random_samples(config, {21, 17}, 4), 6);
      auto& sample = other.memory()[s];
      const index_t width = config.feature_width();
      std::vector<float> features(std::size_t(sample.features->rows() * width));
      sample.features->read({0, sample.features->rows()}, features.data());
      for (auto i = std::size_t(anchor * width); i < features.size(); ++i) features[i] += 1;
      sample.features = std::make_shared<MemoryFeatures>(std::move(features), width);
      for (auto i = std::size_t(anchor + 1); i < sample.text.tokens.size(); ++i)
        sample.text.tokens[i] = (sample.text.tokens[i] + 1) % 18;
      other.samples()[s] = sample;
      other.blocks()[s] = blocks_at(sample.text.tokens, sample.text.loss_mask, blocks.anchors, k);
      other.pack();
      const auto after = other.output();
      bool same = true, moved = false;
      for (index_t i = 0; i < k * hidden; ++i)
        same = same && before[std::size_t(block_at * k * hidden + i)] ==
                           after[std::size_t(block_at * k * hidden + i)];
      for (std::size_t i = 0; i < before.size(); ++i) moved = moved || before[i] != after[i];
      CHECK(same);
      if (n + 1 < blocks.count()) CHECK(moved);  // later blocks do see the change
    }
  }
}

TEST_CASE("A sample's outputs are the same bits alone, in any pack and with any threads") {
  const auto config = small_config(true, true);
  const auto all = random_samples(config, {19, 7, 30}, 6);
  DraftProblem<float> pack(config, all, 4, {}, 2);
  const auto packed = pack.output();
  std::vector<float> apart;
  for (const auto& sample : all) {
    DraftProblem<float> alone(config, {sample}, 4);
    const auto output = alone.output();
    apart.insert(apart.end(), output.begin(), output.end());
  }
  CHECK(std::ranges::equal(apart, packed));
}

TEST_CASE("Products in bf16 give the same gradients from rows in bfloat16 and in float") {
  auto config = small_config(true, true);
  SUBCASE("short rows") {}
  SUBCASE("rows of whole vectors") { config.shape.hidden = 64, config.shape.intermediate = 96; }
  const auto samples = random_samples(config, {19, 7, 30}, 6);
  DraftProblem<float> narrow(config, samples, 4, {}, 2, CpuPrecision::bf16);
  DraftProblem<float, dflash_test::WideBackend> wide(config, samples, 4, {}, 1, CpuPrecision::bf16);
  auto from_narrow = zero_gradients(narrow.cpu, config);
  auto from_wide = zero_gradients(wide.cpu, config);
  CHECK(narrow.step(from_narrow).numerator == wide.step(from_wide).numerator);
  const View<float, 1> a = from_narrow.flat(), b = from_wide.flat();
  CHECK(std::equal(a.data, a.data + a.size(), b.data, b.data + b.size()));
}

TEST_CASE("Gradients of a pack are the sum over its samples") {
  const auto config = small_config();
  const auto all = random_samples(config, {19, 7, 30}, 6);
  DraftProblem<double> pack(config, all, 4, {.type = LossType::dpace});
  auto together = zero_gradients(pack.cpu, config), apart = zero_gradients(pack.cpu, config);
  const auto whole = pack.step(together);
  LossResult sum;
  for (const auto& sample : all) {
    DraftProblem<double> alone(config, {sample}, 4, {.type = LossType::dpace});
    sum += alone.step(apart);
  }
  CHECK(sum.numerator == doctest::Approx(whole.numerator).epsilon(1e-12));
  CHECK(sum.denominator == whole.denominator);
  for (index_t i = 0; i < together.flat().size(); ++i)
    CHECK(std::abs(together.flat().data[i] - apart.flat().data[i]) < 1e-12);
}

}  // namespace draft_model_test
