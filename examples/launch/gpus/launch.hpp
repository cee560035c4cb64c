#pragma once

#include <cuda_runtime.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <exception>
#include <optional>
#include <string>
#include <utility>

#include "dflash/comm/thread_communicator.hpp"
#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/sum_of_parts.cuh"
#include "dflash/nccl.hpp"
#include "guarded.hpp"

namespace examples {

/// How a program gets its ranks: here, threads of this process, each with a GPU of its own.
class Launcher {
 public:
  Launcher(int&, char**&) {}

  /// The program itself; a failure is one sentence and exit status 1.
  template <class Body>
  int guarded(const char* program, Body&& body) {
    return examples::guarded(program, body);
  }

  /// Reads the flags. Returns the status to end with, if that is all there was to do.
  std::optional<int> parse(CLI::App& app, int argc, char** argv) {
    app.add_option("--ranks", ranks_, "ranks, a GPU of this machine for each")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    app.add_option("--dist-timeout", minutes_, "minutes a rank waits for another")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      return app.exit(error);
    }
    int devices = 0;
    dflash::cuda_expects(cudaGetDeviceCount(&devices), "the CUDA devices");
    if (ranks_ > devices)
      throw dflash::Error("--ranks " + std::to_string(ranks_) + ": there are " +
                          std::to_string(devices) + " GPUs, and each rank needs its own");
    return {};
  }

  int ranks() const { return ranks_; }
  bool first() const { return true; }
  int threads(int) const { return 1; }

  /// Runs body(world) on every rank. A failure is thrown once, with the rank if there are several.
  template <class Body>
  void run(Body&& body) {
    const std::chrono::duration<double> time_out(60 * minutes_);
    const auto on_device = [&](dflash::ThreadCommunicator host) {
      dflash::cuda_expects(cudaSetDevice(host.rank()), "the rank's GPU");
      body(dflash::NcclCommunicator(std::move(host), {.time_out = time_out}));
    };
    try {
      dflash::ThreadCommunicator::run(ranks_, on_device, {.time_out = time_out});
    } catch (const std::exception& failure) {
      if (ranks_ == 1) std::rethrow_if_nested(failure);
      throw;
    }
  }

 private:
  int ranks_ = 1;
  double minutes_ = 30;
};

}  // namespace examples
