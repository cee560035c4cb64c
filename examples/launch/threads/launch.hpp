#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <exception>
#include <utility>

#include "dflash/comm/thread_communicator.hpp"

namespace examples {

/// How a program gets its ranks: here, threads of this process.
class Launcher {
 public:
  Launcher(int&, char**&) {}

  void add_to(CLI::App& app) {
    app.add_option("--ranks", ranks_, "ranks, as threads of this process")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    app.add_option("--dist-timeout", minutes_, "minutes a rank waits for another")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
  }
  int ranks() const { return ranks_; }
  bool first() const { return true; }

  /// Runs body(world) on every rank. A failure is thrown once, with the rank if there are several.
  template <class Body>
  void run(Body&& body) {
    try {
      dflash::ThreadCommunicator::run(ranks_, body, {.time_out = std::chrono::minutes(minutes_)});
    } catch (const std::exception& failure) {
      if (ranks_ == 1) std::rethrow_if_nested(failure);
      throw;
    }
  }

 private:
  int ranks_ = 1, minutes_ = 30;
};

}  // namespace examples
