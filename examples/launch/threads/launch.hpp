#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <exception>
#include <optional>
#include <thread>
#include <utility>

#include "dflash/comm/thread_communicator.hpp"
#include "guarded.hpp"

namespace examples {

/// How a program gets its ranks: here, threads of this process.
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
    app.add_option("--ranks", ranks_, "ranks, as threads of this process")
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
    return {};
  }

  int ranks() const { return ranks_; }
  bool first() const { return true; }
  /// Threads of a rank, if so many are asked for; 0: its share of the cores.
  int threads(int asked) const {
    return asked > 0 ? asked : std::max(1, int(std::thread::hardware_concurrency()) / ranks_);
  }

  /// Runs body(world) on every rank. A failure is thrown once, with the rank if there are several.
  template <class Body>
  void run(Body&& body) {
    try {
      dflash::ThreadCommunicator::run(ranks_, body,
                                      {.time_out = std::chrono::duration<double>(60 * minutes_)});
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
