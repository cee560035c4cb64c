#pragma once

#include <algorithm>
#include <thread>

#include "launch/thread_launcher.hpp"

namespace examples {

/// How a program gets its ranks: here, threads of this process.
class Launcher : public ThreadLauncher {
 public:
  Launcher(int&, char**&) {}

  std::optional<int> parse(CLI::App& app, int argc, char** argv) {
    return ThreadLauncher::parse(app, argc, argv, "ranks, as threads of this process");
  }

  /// Threads of a rank, if so many are asked for; 0: its share of the cores.
  int threads(int asked) const {
    return asked > 0 ? asked : std::max(1, int(std::thread::hardware_concurrency()) / ranks());
  }

  /// Runs body(world) on every rank.
  template <class Body>
  void run(Body&& body) {
    run_threads(body);
  }
};

}  // namespace examples
