#pragma once

#include <algorithm>
#include <thread>

#include "launch/process_launcher.hpp"

namespace examples {

/// How a program gets its ranks: here, the processes that mpirun or srun started.
class Launcher : public ProcessLauncher {
 public:
  using ProcessLauncher::ProcessLauncher;

  /// Threads of a rank, if so many are asked for; 0: its share of the machine's cores.
  int threads(int asked) const {
    const int cores = int(std::thread::hardware_concurrency());
    return asked > 0 ? asked : std::max(1, cores / int(here().ranks));
  }

  /// Runs body(world) on every rank.
  template <class Body>
  void run(Body&& body) {
    body(world());
  }
};

}  // namespace examples
