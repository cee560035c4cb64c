#include "dflash/train/progress.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <sstream>

namespace progress_test {

using namespace dflash;

TrainingRecord record_of(index_t step) {
  return {.step = step,
          .epoch = 0,
          .loss = 3.14159,
          .accuracy = 0.25,
          .acceptance = 1.5,
          .grad_norm = 1,
          .learning_rate = 1e-3,
          .tokens_per_second = 5234};
}

auto count(const std::string& text, char c) { return std::count(text.begin(), text.end(), c); }

TEST_CASE("durations and rates read well") {
  CHECK(duration_text(0) == "0 s");
  CHECK(duration_text(41.2) == "42 s");
  CHECK(duration_text(59.5) == "1 min 00 s");
  CHECK(duration_text(185) == "3 min 05 s");
  CHECK(duration_text(2 * 3600 + 7 * 60) == "2 h 07 min");
  CHECK(duration_text(-3) == "0 s");
  CHECK(rate_text(0.25) == "0.25");
  CHECK(rate_text(87) == "87");
  CHECK(rate_text(999.7) == "1.0k");
  CHECK(rate_text(5234) == "5.2k");
  CHECK(rate_text(999970) == "1.0M");
  CHECK(rate_text(1.3e6) == "1.3M");
}

TEST_CASE("on a terminal one line is rewritten, not too often, and ended") {
  std::ostringstream out;
  {
    TrainingProgress progress(out, true, 100, 0, 1000.0);
    for (index_t step = 1; step <= 50; ++step)
      progress.show(record_of(step), step % 10 == 0, 1000.0 + 0.01 * double(step));
    CHECK(count(out.str(), '\n') == 0);
    CHECK(count(out.str(), '\r') == 5);
  }
  CHECK(count(out.str(), '\n') == 1);
  CHECK(out.str().find("step 11/100  loss 3.1416  accuracy 0.250  acceptance 1.500  5.2k tokens/s  "
                       "1 s left") != std::string::npos);
}

TEST_CASE("elsewhere there is a plain line where a log line is due") {
  std::ostringstream out;
  TrainingProgress progress(out, false, 30, 0, 0.0);
  for (index_t step = 1; step <= 30; ++step)
    progress.show(record_of(step), step % 10 == 0, 2.0 * double(step));
  const std::string text = out.str();
  CHECK(count(text, '\n') == 3);
  CHECK(count(text, '\r') == 0);
  CHECK(text.starts_with(
      "step 10/30  loss 3.1416  accuracy 0.250  acceptance 1.500  5.2k tokens/s  40 s left\n"));
  CHECK(text.ends_with("1 min 00 s in all\n"));
}

TEST_CASE("the time left of a resumed run counts its own steps only") {
  std::ostringstream out;
  TrainingProgress progress(out, false, 100, 90, 0.0);
  progress.show(record_of(95), true, 10.0);
  CHECK(out.str().ends_with("10 s left\n"));
}

TEST_CASE("counted work shows its rate and the time left") {
  std::ostringstream out;
  CountProgress progress(out, false, "samples", 400, 100, 0.0);
  progress.show(150, "2 dropped", 20.0);
  progress.show(151, {}, 21.0);
  progress.show(400, {}, 120.0);
  CHECK(out.str() ==
        "150/400 samples  2.5/s  1 min 40 s left  2 dropped\n"
        "400/400 samples  2.5/s  2 min 00 s in all\n");
  std::ostringstream watched;
  {
    CountProgress line(watched, true, "samples", 10, 0, 0.0);
    line.show(5, {}, 1.0);
    line.show(6, {}, 1.05);
  }
  CHECK(watched.str() == "\r\033[K5/10 samples  5/s  1 s left\n");
}

TEST_CASE("nothing to do is told at once") {
  std::ostringstream out;
  CountProgress(out, false, "samples", 7, 7, 0.0).show(7, {}, 0.0);
  CHECK(out.str() == "7/7 samples\n");
}

}  // namespace progress_test
