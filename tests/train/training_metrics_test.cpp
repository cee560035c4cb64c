#include "dflash/train/training_metrics.hpp"

#include <doctest/doctest.h>

namespace training_metrics_test {

using namespace dflash;

LossResult result_of(const std::vector<float>& weight, const std::vector<std::uint8_t>& right,
                     double numerator, double denominator) {
  LossResult r(index_t(weight.size()));
  r.numerator = numerator;
  r.denominator = denominator;
  r.metrics.add_block(weight, right);
  return r;
}

double accepted(const std::vector<float>& weight, const std::vector<std::uint8_t>& right) {
  return result_of(weight, right, 0, 1).metrics.accepted;
}

TEST_CASE("the accepted run counts leading right predictions and ends at a hole") {
  CHECK(accepted({0, 1, 1, 1}, {0, 1, 1, 1}) == 4);
  CHECK(accepted({0, 1, 1, 1}, {0, 1, 0, 1}) == 2);
  CHECK(accepted({0, 1, 1, 1}, {0, 0, 1, 1}) == 1);
  CHECK(accepted({0, 1, 0, 1}, {0, 1, 1, 1}) == 2);
  CHECK(accepted({0, 0, 1, 1}, {1, 1, 1, 1}) == 1);
  CHECK(accepted({0, 1, 1, 0}, {0, 1, 1, 0}) == 3);
  CHECK(accepted({0, 0, 0, 0}, {1, 1, 1, 1}) == 0);
}

TEST_CASE("blocks without a supervised slot count nowhere") {
  const auto r = result_of({0, 0, 0}, {1, 1, 1}, 0, 0);
  CHECK(r.metrics.blocks == 0);
  CHECK(r.metrics.acceptance() == 0);
  CHECK(r.metrics.accuracy() == 0);
  CHECK(r.metrics.accuracy(1) == 0);
}

TEST_CASE("results add, and are the same after a sum as flat numbers") {
  const auto a = result_of({0, 1, 1}, {0, 1, 0}, 2, 2), b = result_of({0, 1, 0}, {0, 1, 1}, 1, 1);
  LossResult sum;
  sum += a;
  sum += b;
  sum += LossResult();
  CHECK(sum.numerator == 3);
  CHECK(sum.loss() == 1);
  CHECK(sum.metrics.supervised == HostVector<double>{0, 2, 1});
  CHECK(sum.metrics.correct == HostVector<double>{0, 2, 0});
  CHECK(sum.metrics.blocks == 2);
  CHECK(sum.metrics.acceptance() == 2);
  CHECK(sum.metrics.accuracy() == doctest::Approx(2.0 / 3));
  CHECK(sum.metrics.accuracy(1) == 1);

  auto flat = a.flat();
  const auto other = b.flat();
  for (std::size_t i = 0; i < flat.size(); ++i) flat[i] += other[i];
  const auto back = LossResult::from_flat(flat);
  CHECK(back.flat() == sum.flat());
  CHECK(flat.size() == 5 + 2 * 3);

  LossResult wrong(5);
  CHECK_THROWS_AS(wrong += a, Error);
  CHECK_THROWS_AS(LossResult::from_flat(std::vector<double>(8)), Error);
}

}  // namespace training_metrics_test
