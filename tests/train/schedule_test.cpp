#include "dflash/train/schedule.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

namespace schedule_test {

using namespace dflash;

Schedule schedule(Schedule::Kind kind, index_t warmup, index_t total, index_t decay_steps = 0) {
  Schedule s;
  s.kind = kind;
  s.peak = 6e-4;
  s.warmup = warmup;
  s.total = total;
  s.decay_steps = decay_steps;
  return s;
}

TEST_CASE("a cosine schedule warms up linearly and falls to zero") {
  const Schedule rate = schedule(Schedule::Kind::cosine, 4, 100);
  CHECK(rate(0) == doctest::Approx(1.5e-4).epsilon(1e-12));
  CHECK(rate(2) == doctest::Approx(4.5e-4).epsilon(1e-12));
  CHECK(rate(3) == 6e-4);
  CHECK(rate(4) == 6e-4);
  CHECK(rate(5) == doctest::Approx(5.99839e-4).epsilon(1e-6));
  CHECK(rate(50) == doctest::Approx(3.19621e-4).epsilon(1e-5));
  CHECK(rate(52) == doctest::Approx(3e-4).epsilon(1e-12));
  CHECK(rate(99) == doctest::Approx(1.61e-7).epsilon(1e-2));
  CHECK(rate(100) == 0);
  CHECK(rate(1000) == 0);
}

TEST_CASE("without a warm-up the first step has the peak rate") {
  CHECK(schedule(Schedule::Kind::cosine, 0, 10)(0) == 6e-4);
  CHECK(schedule(Schedule::Kind::constant, 0, 10)(0) == 6e-4);
  CHECK(schedule(Schedule::Kind::wsd, 0, 10, 5)(0) == 6e-4);
  CHECK(schedule(Schedule::Kind::cosine, 0, 1)(0) == 6e-4);
}

TEST_CASE("a constant schedule keeps the peak") {
  const Schedule rate = schedule(Schedule::Kind::constant, 3, 10);
  CHECK(rate(0) == doctest::Approx(2e-4));
  for (const index_t step : {2, 3, 9, 10, 5000}) CHECK(rate(step) == 6e-4);
}

TEST_CASE("a wsd schedule keeps the peak until its decay, which ends at zero") {
  Schedule rate = schedule(Schedule::Kind::wsd, 2, 20, 8);
  for (index_t step = 1; step <= 12; ++step) CHECK(rate(step) == 6e-4);
  CHECK(rate(14) == doctest::Approx(6e-4 * 0.75));
  CHECK(rate(16) == doctest::Approx(6e-4 * 0.5));
  CHECK(rate(19) == doctest::Approx(6e-4 * 0.125));
  CHECK(rate(20) == 0);
  rate.decay = Schedule::Decay::one_minus_sqrt;
  CHECK(rate(12) == 6e-4);
  CHECK(rate(14) == doctest::Approx(6e-4 * 0.5));
  CHECK(rate(19) == doctest::Approx(6e-4 * (1 - std::sqrt(0.875))));
  CHECK(rate(20) == 0);
  rate.decay_steps = 0;
  CHECK(rate(19) == 6e-4);
}

TEST_CASE("the warm-up is a ratio of the steps, rounded down") {
  CHECK(Schedule::warmup_steps(0.04, 100) == 4);
  CHECK(Schedule::warmup_steps(0.1, 37) == 3);
  CHECK(Schedule::warmup_steps(0.99, 7) == 6);
  CHECK(Schedule::warmup_steps(0, 7) == 0);
}

TEST_CASE("numbers and names that make no schedule are errors") {
  CHECK_NOTHROW(schedule(Schedule::Kind::cosine, 4, 100).check());
  CHECK_NOTHROW(schedule(Schedule::Kind::wsd, 4, 100, 96).check());
  CHECK_THROWS_WITH_AS(schedule(Schedule::Kind::cosine, 10, 10).check(),
                       "schedule: the warm-up must be shorter than the 10 steps, got 10", Error);
  CHECK_THROWS_AS(schedule(Schedule::Kind::cosine, -1, 10).check(), Error);
  CHECK_THROWS_AS(schedule(Schedule::Kind::cosine, 0, 0).check(), Error);
  CHECK_THROWS_WITH_AS(schedule(Schedule::Kind::wsd, 4, 100, 97).check(),
                       "schedule: warm-up and decay must fit into the 100 steps, got 4 and 97",
                       Error);
  Schedule bad = schedule(Schedule::Kind::constant, 0, 10);
  bad.peak = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(bad.check(), Error);
  CHECK(Schedule::kinds.named("wsd") == Schedule::Kind::wsd);
  CHECK_THROWS_WITH_AS(Schedule::kinds.named("linear"),
                       "lr_scheduler 'linear' is unknown; known are cosine, constant and wsd",
                       Error);
  CHECK(Schedule::decays.named("1-sqrt") == Schedule::Decay::one_minus_sqrt);
  CHECK_THROWS_AS(Schedule::decays.named("sqrt"), Error);
}

}  // namespace schedule_test
