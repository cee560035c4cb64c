// The programs under mpirun: what they give, and how a job ends that loses a rank.

#define DOCTEST_CONFIG_IMPLEMENT
#include "programs/programs.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <random>

#include "dflash/io/safetensors.hpp"

namespace {

const Arguments data{"--num-samples", "24",           "--sample-filter",
                     "adjacent-pair", "--max-length", "120"};

/// A program on some ranks.
Process started(int ranks, const std::string& program, const Arguments& flags) {
  Arguments words{"-n", std::to_string(ranks),
                  std::filesystem::path(DFLASH_PROGRAMS) / (program + "_mpi")};
  words.insert(words.end(), flags.begin(), flags.end());
  return Process(DFLASH_MPIRUN, words);
}

/// The process of a rank of the job that has `mark` among its arguments; 0: there is none yet.
pid_t process_of(int rank, const std::string& mark) {
  const std::string variable = "OMPI_COMM_WORLD_RANK=" + std::to_string(rank);
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string environment = '\0' + content_of(entry.path() / "environ");
    if (content_of(entry.path() / "cmdline").find(mark) != std::string::npos &&
        environment.find('\0' + variable + '\0') != std::string::npos)
      return pid_t(std::stol(entry.path().filename()));
  }
  return 0;
}

long steps_logged(const std::filesystem::path& output) {
  const auto text = content_of(output / "log.jsonl");
  return std::count(text.begin(), text.end(), '\n');
}

double difference(const std::filesystem::path& a, const std::filesystem::path& b) {
  const dflash::SafetensorsFile one(a / "model.safetensors"), many(b / "model.safetensors");
  double top = 0, worst = 0;
  for (const auto& [name, tensor] : one.tensors()) {
    const auto x = one.read<float>(name), y = many.read<float>(name);
    for (std::size_t i = 0; i < x.size(); ++i) {
      top = std::max(top, std::abs(double(x[i])));
      worst = std::max(worst, std::abs(double(x[i]) - double(y[i])));
    }
  }
  return worst / top;
}

Outcome succeed_on(int ranks, const std::string& program, const Arguments& flags) {
  const Outcome outcome = started(ranks, program, flags).wait();
  INFO(program, " says ", outcome.err);
  REQUIRE(outcome.status == 0);
  return outcome;
}

}  // namespace

TEST_CASE("the store that processes capture is that of one, byte for byte") {
  const TemporaryFolder folder;
  const auto flags = [&](const char* store) {
    return capture_flags(folder / store) + data +
           Arguments{"--num-samples", "50", "--shard-size", "1", "--batch-size", "3"};
  };
  succeed("prepare_hidden_states", flags("one"));
  const auto outcome = succeed_on(3, "prepare_hidden_states", flags("three"));
  CHECK(files_below(folder / "three") == files_below(folder / "one"));
  CHECK(lines_of(outcome.out).size() <= 6);  // one rank speaks
}

TEST_CASE("a job that loses a rank at a random moment ends, names it, and resumes on other ranks") {
  const TemporaryFolder folder;
  succeed("prepare_hidden_states", capture_flags(folder / "store") + data);
  const auto flags = [&](const std::string& output) {
    return train_flags(folder / output) + Arguments{"--train-hidden-states-path",
                                                    folder / "store",
                                                    "--max-steps",
                                                    "50",
                                                    "--batch-size",
                                                    "2",
                                                    "--save-interval",
                                                    "2"};
  };
  succeed("train_offline", flags("whole"));
  struct Round {
    int ranks, signal;
    Arguments layout;
  };
  const Round rounds[] = {{3, SIGKILL, {"--sp-ulysses-size", "3"}},
                          {2, SIGSTOP, {"--sp-ring-size", "2", "--dist-timeout", "0.05"}},
                          {4, SIGKILL, {"--sp-ulysses-size", "2", "--tp-size", "4"}}};
  std::mt19937 random(7);
  for (const Round& round : rounds) {
    CAPTURE(round.ranks);
    const long before = steps_logged(folder / "parts");
    Process job = started(round.ranks, "train_offline",
                          flags("parts") + round.layout + Arguments{"--resume"});
    while (!job.ended() && steps_logged(folder / "parts") < before + 4) ::usleep(1000);
    ::usleep(unsigned(random() % 20000));
    const int rank = int(random() % unsigned(round.ranks));
    const pid_t process = process_of(rank, folder / "parts");
    REQUIRE(process > 0);
    ::kill(process, round.signal);
    const auto begin = std::chrono::steady_clock::now();
    const Outcome outcome = job.wait();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    CHECK(outcome.status != 0);
    CHECK(seconds.count() < 30);
    const std::string name = "rank " + std::to_string(rank);
    const std::string says = round.signal == SIGKILL ? "process " + name + " with PID "
                                                     : " for " + name + ", which does not answer";
    CHECK_MESSAGE(mentions(outcome.err, says), outcome.err);
  }
  REQUIRE(std::filesystem::exists(folder / "parts" / "step-000002"));
  CHECK_FALSE(std::filesystem::exists(folder / "parts" / "step-000050"));
  const auto last =
      succeed("train_offline", flags("parts") + Arguments{"--resume", "--ranks", "2"});
  CHECK(mentions(last.out, "resuming from "));
  CHECK(difference(folder / "whole" / "step-000050", folder / "parts" / "step-000050") <= 1e-3);
}

TEST_CASE("a failure of processes is told once, with the rank, wrong flags by one") {
  const TemporaryFolder folder;
  const auto wrong = started(3, "train_offline", {"--frobnicate"}).wait();
  CHECK(wrong.status != 0);
  CHECK(mentions(wrong.err, "train_offline: "));
  CHECK(wrong.err.find("--help lists the flags") == wrong.err.rfind("--help lists the flags"));

  succeed("prepare_hidden_states", capture_flags(folder / "store") + data);
  const auto shard = folder / "store" / "shard-000000.safetensors";
  std::string content = content_of(shard);
  content[8192] = char(content[8192] ^ 1);
  put(shard, content);
  const auto damaged =
      started(2, "train_offline",
              train_flags(folder / "draft") +
                  Arguments{"--train-hidden-states-path", folder / "store", "--max-steps", "12",
                            "--batch-size", "2", "--sp-ulysses-size", "2"})
          .wait();
  CHECK(damaged.status != 0);
  CHECK_MESSAGE(mentions(damaged.err, " failed: " + shard.string() + ": sample "), damaged.err);
  CHECK(mentions(damaged.err, "rank "));
}

int main(int argc, char** argv) {
  for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
                           "OMPI_MCA_rmaps_base_oversubscribe"})
    ::setenv(name, "1", 0);
  return doctest::Context(argc, argv).run();
}
