#pragma once

#include <CLI/CLI.hpp>
#include <utility>

#include "dflash/mpi.hpp"

namespace examples {

/// How a program gets its ranks: here, the processes that mpirun or srun started.
class Launcher {
 public:
  Launcher(int& argc, char**& argv)
      : environment_(argc, argv, {.time_out = std::chrono::minutes(30)}) {
    const auto world = environment_.world();
    ranks_ = world.size(), first_ = world.rank() == 0;
  }

  void add_to(CLI::App&) {}
  int ranks() const { return ranks_; }
  bool first() const { return first_; }

  /// Runs body(world) on every rank. A failure ends the job, with its rank and text.
  template <class Body>
  void run(Body&& body) {
    environment_.run(body);
  }

 private:
  dflash::MpiEnvironment environment_;
  int ranks_ = 1;
  bool first_ = true;
};

}  // namespace examples
