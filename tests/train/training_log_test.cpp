#include "dflash/train/training_log.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "train/temporary_folder.hpp"

namespace training_log_test {

using namespace dflash;

TrainingRecord record_of(index_t step) {
  return {.step = step,
          .epoch = 2,
          .loss = 3.25,
          .accuracy = 0.5,
          .acceptance = 1.75,
          .grad_norm = 0.125,
          .learning_rate = 6e-4,
          .tokens_per_second = 1024};
}

std::vector<nlohmann::json> lines(const TemporaryFolder& folder) {
  std::ifstream file(folder.path() / "log.jsonl");
  std::vector<nlohmann::json> all;
  for (std::string line; std::getline(file, line);) all.push_back(nlohmann::json::parse(line));
  return all;
}

TEST_CASE("a line has what a record holds, and is on disk at once") {
  TemporaryFolder folder;
  TrainingLog log(folder.path(), 0);
  log.write(record_of(50));
  const auto all = lines(folder);
  REQUIRE(all.size() == 1);
  CHECK(all[0] == nlohmann::json{{"step", 50},
                                 {"epoch", 2},
                                 {"loss", 3.25},
                                 {"accuracy", 0.5},
                                 {"acceptance", 1.75},
                                 {"grad_norm", 0.125},
                                 {"learning_rate", 6e-4},
                                 {"tokens_per_second", 1024.0}});
}

TEST_CASE("numbers that are not finite are null, and skipped steps are told") {
  TemporaryFolder folder;
  TrainingLog log(folder.path(), 0);
  auto record = record_of(1);
  record.loss = NAN;
  record.skipped_steps = 3;
  log.write(record);
  CHECK(lines(folder).at(0).at("loss").is_null());
  CHECK(lines(folder).at(0).at("skipped_steps") == 3);
}

TEST_CASE("a resumed run drops later lines and a line that was cut off") {
  TemporaryFolder folder;
  {
    TrainingLog log(folder.path(), 0);
    for (const index_t step : {10, 20, 30, 40}) log.write(record_of(step));
  }
  std::ofstream(folder.path() / "log.jsonl", std::ios::app) << "{\"step\": 5";
  {
    TrainingLog log(folder.path(), 25);
    log.write(record_of(30));
  }
  const auto all = lines(folder);
  REQUIRE(all.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) CHECK(all[i].at("step") == 10 * (i + 1));
  TrainingLog anew(folder.path(), 0);
  CHECK(lines(folder).empty());
}

TEST_CASE("a log that cannot be written is an error that names the file") {
  TemporaryFolder folder;
  CHECK_THROWS_AS(TrainingLog(folder.path() / "nowhere", 0), Error);
}

}  // namespace training_log_test
