#include "dflash/decode/acceptance.hpp"

#include <doctest/doctest.h>

namespace acceptance_test {

using dflash::AcceptanceStatistics;
using dflash::index_t;

/// Two answers: cycles that accept 0, 3, 1 tokens, and 2, 0.
AcceptanceStatistics example() {
  AcceptanceStatistics s(4);
  for (const index_t accepted : {0, 3, 1}) s.add_cycle(accepted);
  s.add_answer(8);
  for (const index_t accepted : {2, 0}) s.add_cycle(accepted);
  s.add_answer(4);
  return s;
}

TEST_CASE("lengths are pooled over cycles, shares are conditional") {
  const auto s = example();
  CHECK(s.cycles() == 5);
  CHECK(s.tokens() == 12);
  CHECK(s.answers() == 2);
  CHECK(s.acceptance_length() == doctest::Approx(11.0 / 5));
  CHECK(s.acceptance_length_of_answers() == doctest::Approx((7.0 / 3 + 4.0 / 2) / 2));
  CHECK(s.histogram() == std::vector<index_t>{2, 1, 1, 1});
  const auto share = s.acceptance_by_position();
  REQUIRE(share.size() == 3);
  CHECK(share[0] == doctest::Approx(3.0 / 5));
  CHECK(share[1] == doctest::Approx(2.0 / 3));
  CHECK(share[2] == doctest::Approx(1.0 / 2));
}

TEST_CASE("counts of several decoders add up") {
  auto s = example();
  s.add(example());
  CHECK(s.cycles() == 10);
  CHECK(s.tokens() == 24);
  CHECK(s.histogram() == std::vector<index_t>{4, 2, 2, 2});
  CHECK(s.acceptance_length() == doctest::Approx(11.0 / 5));
  CHECK(s.acceptance_length_of_answers() ==
        doctest::Approx(example().acceptance_length_of_answers()));
}

TEST_CASE("without a cycle, and where no cycle came, shares are zero") {
  AcceptanceStatistics s(3);
  CHECK(s.acceptance_length() == 0);
  CHECK(s.acceptance_by_position() == std::vector<double>{0, 0});
  s.add_answer(1);  // ended by the prefill's token
  CHECK(s.answers() == 1);
  CHECK(s.acceptance_length_of_answers() == 0);
  s.add_cycle(0);
  CHECK(s.acceptance_by_position() == std::vector<double>{0, 0});
  CHECK(s.acceptance_length() == 1);
}

TEST_CASE("json has every figure") {
  const auto json = example().to_json();
  CHECK(json["acceptance_length"] == doctest::Approx(2.2));
  CHECK(json["acceptance_by_position"].size() == 3);
  CHECK(json["acceptance_histogram"] == nlohmann::json{2, 1, 1, 1});
  CHECK(json["tokens"] == 12);
  CHECK(json["target_forwards"] == 5);
  CHECK(json["answers"] == 2);
}

TEST_CASE("impossible counts are refused") {
  AcceptanceStatistics s(4), other(5);
  CHECK_THROWS_AS(s.add_cycle(4), dflash::Error);
  CHECK_THROWS_AS(s.add_cycle(-1), dflash::Error);
  CHECK_THROWS_AS(s.add(other), dflash::Error);
  AcceptanceStatistics open(4);
  open.add_cycle(1);
  CHECK_THROWS_AS(s.add(open), dflash::Error);
}

}  // namespace acceptance_test
