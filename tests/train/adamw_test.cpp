#include "dflash/train/adamw.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "dflash/core/bfloat16.hpp"
#include "dflash/cpu.hpp"
#include "dflash/cpu/convert.hpp"

namespace adamw_test {

using namespace dflash;

/// Three tensors with a gap before the last.
const std::vector<ParameterSlot> slots{{"a", {2, 3}, 0, 6}, {"b", {4}, 6, 4}, {"c", {5}, 12, 5}};
constexpr index_t total = 17;

template <class T>
std::vector<T> numbers(std::uint64_t seed) {
  std::vector<T> values(total);
  const Random random(seed);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = T(float(random.normal(i)));
  return values;
}

template <class T>
View<T, 1> view(std::vector<T>& values) {
  return {values.data(), {index_t(values.size())}};
}

/// AdamW as its paper states it, one scalar at a time, without any clipping.
struct Textbook {
  AdamWOptions o;
  std::vector<double> w, m = std::vector<double>(total), v = std::vector<double>(total);
  std::vector<int> t = std::vector<int>(total);

  void step(const std::vector<double>& g, double rate, double scale,
            const std::vector<bool>& skip) {
    for (const ParameterSlot& slot : slots)
      for (auto i = std::size_t(slot.offset); i < std::size_t(slot.offset + slot.size); ++i) {
        if (skip[i]) continue;
        ++t[i];
        const double gradient = g[i] * scale;
        m[i] = o.beta1 * m[i] + (1 - o.beta1) * gradient;
        v[i] = o.beta2 * v[i] + (1 - o.beta2) * gradient * gradient;
        const double mean = m[i] / (1 - std::pow(o.beta1, t[i])),
                     square = v[i] / (1 - std::pow(o.beta2, t[i]));
        w[i] -= rate * (mean / (std::sqrt(square) + o.eps) + o.decay * w[i]);
      }
  }
};

double norm_of(const std::vector<double>& g, const std::vector<bool>& skip) {
  double sum = 0;
  for (const ParameterSlot& slot : slots)
    for (auto i = std::size_t(slot.offset); i < std::size_t(slot.offset + slot.size); ++i)
      if (!skip[i]) sum += g[i] * g[i];
  return std::sqrt(sum);
}

TEST_CASE("steps follow the paper, with the gradient divided and clipped first") {
  for (const double limit : {0.0, 0.5, 100.0, double(INFINITY)}) {
    CpuBackend<double> backend;
    const AdamWOptions options{.beta1 = 0.8, .beta2 = 0.95, .decay = 0.1, .max_grad_norm = limit};
    auto weights = numbers<double>(1);
    Textbook expected{.o = options, .w = weights};
    AdamW optimizer(backend, view(weights), slots, options);
    for (int step = 0; step < 6; ++step) {
      auto gradient = numbers<double>(std::uint64_t(10 + step));
      const double denominator = 2.5 + step, rate = 0.01 * (step + 1);
      std::vector<bool> skip(total);
      std::vector<index_t> absent;
      if (step == 0 || step == 3) {
        absent = {1};
        for (std::size_t i = 6; i < 10; ++i) skip[i] = true;
      }
      const double norm = norm_of(gradient, skip) / denominator;
      const double clip = limit > 0 && limit < INFINITY ? std::min(1.0, limit / (norm + 1e-6)) : 1;
      expected.step(gradient, rate, clip / denominator, skip);
      CHECK(optimizer.step(view(weights), view(gradient), rate, denominator, absent) ==
            doctest::Approx(norm).epsilon(1e-14));
      for (std::size_t i = 0; i < weights.size(); ++i)
        CHECK(weights[i] == doctest::Approx(expected.w[i]).epsilon(1e-12));
    }
    CHECK(optimizer.steps() == std::vector<index_t>{6, 4, 6});
  }
}

TEST_CASE("what belongs to no tensor is left alone") {
  CpuBackend<float> backend;
  auto weights = numbers<float>(1), gradient = numbers<float>(2);
  gradient[10] = std::numeric_limits<float>::quiet_NaN();
  const auto before = weights;
  AdamW optimizer(backend, view(weights), slots, {.decay = 0.5});
  CHECK(std::isfinite(optimizer.step(view(weights), view(gradient), 0.1, 1)));
  CHECK(weights[10] == before[10]);
  CHECK(weights[11] == before[11]);
  CHECK(weights[0] != before[0]);
}

TEST_CASE("a gradient that is not finite, or has no denominator, changes nothing") {
  CpuBackend<float> backend;
  auto weights = numbers<float>(1);
  AdamW optimizer(backend, view(weights), slots);
  auto good = numbers<float>(2);
  optimizer.step(view(weights), view(good), 0.1, 1);
  const auto before = weights;
  const auto moments = [&] {
    std::vector<float> all(2 * 6);
    optimizer.read(OptimizerPart::first_moment, view(weights), {0, 6}, all.data());
    optimizer.read(OptimizerPart::second_moment, view(weights), {0, 6}, all.data() + 6);
    return all;
  };
  const auto moments_before = moments();
  for (const float bad : {std::numeric_limits<float>::infinity(), float(NAN)}) {
    auto gradient = good;
    gradient[3] = bad;
    CHECK_FALSE(std::isfinite(optimizer.step(view(weights), view(gradient), 0.1, 1)));
  }
  std::vector<float> zero(total, 0.0f);
  CHECK_FALSE(std::isfinite(optimizer.step(view(weights), view(good), 0.1, 0)));
  CHECK_FALSE(std::isfinite(optimizer.step(view(weights), view(zero), 0.1, 0)));
  CHECK(weights == before);
  CHECK(moments() == moments_before);
  CHECK(optimizer.steps() == std::vector<index_t>{1, 1, 1});
}

TEST_CASE("a model in bfloat16 is its float masters, rounded") {
  CpuBackend<float> backend;
  std::vector<bfloat16> model;
  for (const float x : numbers<float>(1)) model.push_back(bfloat16(x));
  std::vector<float> masters;
  for (const bfloat16 x : model) masters.push_back(static_cast<float>(x));
  AdamW small(backend, view(model), slots);
  AdamW plain(backend, view(masters), slots);
  static_assert(decltype(small)::has_masters && !decltype(plain)::has_masters);
  for (int step = 0; step < 20; ++step) {
    auto gradient = numbers<float>(std::uint64_t(30 + step));
    // Far below the spacing of bfloat16: only masters can add such steps up.
    CHECK(small.step(view(model), view(gradient), 1e-4, 1) ==
          plain.step(view(masters), view(gradient), 1e-4, 1));
  }
  std::vector<float> kept(6);
  small.read(OptimizerPart::master, view(model), {0, 6}, kept.data());
  for (std::size_t i = 0; i < kept.size(); ++i) {
    CHECK(kept[i] == masters[i]);
    CHECK(model[i].bits == bfloat16(masters[i]).bits);
  }
}

TEST_CASE("slices stepped apart equal the whole") {
  CpuBackend<double> backend;
  auto whole = numbers<double>(1), parts = whole;
  AdamW optimizer(backend, view(whole), slots);
  AdamW left(backend, view(parts), slots, {}, {0, 8}),
      right(backend, view(parts), slots, {}, {8, total});
  for (int step = 0; step < 4; ++step) {
    auto gradient = numbers<double>(std::uint64_t(50 + step));
    const double norm = optimizer.step(view(whole), view(gradient), 0.01, 3);
    const double shared =
        std::sqrt(left.squared_norm(view(gradient)) + right.squared_norm(view(gradient))) / 3;
    CHECK(shared == doctest::Approx(norm).epsilon(1e-14));
    CHECK(left.apply(view(parts), view(gradient), 0.01, 3, shared));
    CHECK(right.apply(view(parts), view(gradient), 0.01, 3, shared));
  }
  for (std::size_t i = 0; i < whole.size(); ++i)
    CHECK(parts[i] == doctest::Approx(whole[i]).epsilon(1e-14));
  auto gradient = numbers<double>(9);
  CHECK_THROWS_AS(left.step(view(parts), view(gradient), 0.01, 3), Error);
}

TEST_CASE("state that is read and written back goes on bit for bit") {
  CpuBackend<float> backend;
  auto weights = numbers<float>(1);
  AdamW first(backend, view(weights), slots);
  for (int step = 0; step < 3; ++step) {
    auto gradient = numbers<float>(std::uint64_t(70 + step));
    first.step(view(weights), view(gradient), 0.01, 1);
  }
  std::vector<float> other(total, 0.0f);
  AdamW second(backend, view(other), slots);
  std::vector<float> host(total);
  for (const auto part :
       {OptimizerPart::master, OptimizerPart::first_moment, OptimizerPart::second_moment})
    for (const ParameterSlot& slot : slots) {
      const Range range{slot.offset, slot.offset + slot.size};
      first.read(part, view(weights), range, host.data());
      second.write(part, view(other), range, host.data());
    }
  second.steps() = first.steps();
  other[10] = weights[10];
  other[11] = weights[11];
  auto gradient = numbers<float>(80);
  CHECK(first.step(view(weights), view(gradient), 0.01, 1) ==
        second.step(view(other), view(gradient), 0.01, 1));
  CHECK(weights == other);
}

TEST_CASE("options out of range are errors that name the value") {
  CpuBackend<float> backend;
  auto weights = numbers<float>(1);
  CHECK_THROWS_WITH_AS(AdamW(backend, view(weights), slots, {.beta2 = 1}),
                       "AdamW: beta2 must be in [0, 1), got 1", Error);
  CHECK_THROWS_WITH_AS(AdamW(backend, view(weights), slots, {.max_grad_norm = -0.5}),
                       "AdamW: max_grad_norm must be at least 0, got -0.5", Error);
  CHECK_THROWS_AS(AdamW(backend, view(weights), {{"a", {20}, 0, 20}}), Error);
}

}  // namespace adamw_test
