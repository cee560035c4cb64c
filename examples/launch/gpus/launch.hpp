#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/sum_of_parts.cuh"
#include "dflash/nccl.hpp"
#include "launch/thread_launcher.hpp"

namespace examples {

/// How a program gets its ranks: here, threads of this process, each with a GPU of its own.
class Launcher : public ThreadLauncher {
 public:
  Launcher(int&, char**&) {}

  std::optional<int> parse(CLI::App& app, int argc, char** argv) {
    if (const auto status =
            ThreadLauncher::parse(app, argc, argv, "ranks, a GPU of this machine for each"))
      return status;
    int devices = 0;
    dflash::cuda_expects(cudaGetDeviceCount(&devices), "the CUDA devices");
    if (ranks() > devices)
      throw dflash::Error("--ranks " + std::to_string(ranks()) + ": there are " +
                          std::to_string(devices) + " GPUs, and each rank needs its own");
    return {};
  }

  int threads(int) const { return 1; }

  /// Runs body(world) on every rank.
  template <class Body>
  void run(Body&& body) {
    run_threads([&](dflash::ThreadCommunicator host) {
      dflash::cuda_expects(cudaSetDevice(host.rank()), "the rank's GPU");
      body(dflash::NcclCommunicator(std::move(host), {.time_out = time_out()}));
    });
  }
};

}  // namespace examples
