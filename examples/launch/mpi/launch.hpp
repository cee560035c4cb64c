#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>

#include "dflash/mpi.hpp"

namespace examples {

/// How a program gets its ranks: here, the processes that mpirun or srun started.
class Launcher {
 public:
  Launcher(int& argc, char**& argv) : environment_(argc, argv) {
    const auto world = environment_.world();
    ranks_ = world.size(), first_ = world.rank() == 0;
    ranks_here_ = environment_.ranks_here();
  }

  /// The program itself, on every rank: a failure ends the job, with its rank and text.
  template <class Body>
  int guarded(const char*, Body&& body) {
    int status = 0;
    environment_.guard([&] { status = body(); });
    return status;
  }

  /// Reads the flags; the first rank tells what is wrong with them, or helps. Returns the status to
  /// end with, if that is all there was to do.
  std::optional<int> parse(CLI::App& app, int argc, char** argv) {
    double minutes = 30;
    app.add_option("--dist-timeout", minutes, "minutes a rank waits for another")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      std::ostringstream silence;
      return first_ ? app.exit(error) : app.exit(error, silence, silence);
    }
    environment_.set_time_out(std::chrono::duration<double>(60 * minutes));
    return {};
  }

  int ranks() const { return ranks_; }
  bool first() const { return first_; }
  /// Threads of a rank, if so many are asked for; 0: its share of the machine's cores.
  int threads(int asked) const {
    return asked > 0 ? asked : std::max(1, int(std::thread::hardware_concurrency()) / ranks_here_);
  }

  /// Runs body(world) on every rank.
  template <class Body>
  void run(Body&& body) {
    body(environment_.world());
  }

 private:
  dflash::MpiEnvironment environment_;
  int ranks_ = 1, ranks_here_ = 1;
  bool first_ = true;
};

}  // namespace examples
