// The programs for GPUs as MPI processes, on the emulated device and over the emulated NCCL.

#define DOCTEST_CONFIG_IMPLEMENT
#include "programs/programs.hpp"

#include <cstdlib>

TEST_CASE("processes that hold a GPU each train as threads do, bit for bit") {
  const TemporaryFolder folder;
  succeed("prepare_hidden_states",
          capture_flags(folder / "store") + Arguments{"--num-samples", "4", "--max-length", "40",
                                                      "--sample-filter", "adjacent-pair"});
  const auto flags = [&](const char* output) {
    return train_flags(folder / output) + Arguments{"--train-hidden-states-path",
                                                    folder / "store",
                                                    "--batch-size",
                                                    "2",
                                                    "--max-steps",
                                                    "2",
                                                    "--tp-size",
                                                    "2"};
  };
  const auto check = [&](const std::string& name, const Arguments& layout) {
    CAPTURE(name);
    const std::string threads = name + "-threads", processes = name + "-processes";
    succeed("train_offline", flags(threads.c_str()) + layout + Arguments{"--ranks", "2"});
    const Arguments job{"-n", "2", std::filesystem::path(DFLASH_PROGRAMS) / "train_offline_mpi"};
    const auto outcome = Process(DFLASH_MPIRUN, job + flags(processes.c_str()) + layout).wait();
    INFO(outcome.err);
    REQUIRE(outcome.status == 0);
    CHECK(log_without_speed(folder / processes) == log_without_speed(folder / threads));
    const auto weights = [&](const std::string& output) {
      return content_of(folder / output / "step-000002" / "model.safetensors");
    };
    CHECK(weights(processes) == weights(threads));
  };
  check("replicas", {});
  check("sequence", {"--sp-ulysses-size", "2"});
}

int main(int argc, char** argv) {
  for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
                           "OMPI_MCA_rmaps_base_oversubscribe"})
    ::setenv(name, "1", 0);
  return doctest::Context(argc, argv).run();
}
