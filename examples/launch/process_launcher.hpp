#pragma once

#include <CLI/CLI.hpp>
#include <optional>

#include "dflash/mpi.hpp"
#include "launch/flags.hpp"

namespace examples {

/// What launchers share whose ranks are the processes that mpirun or srun started.
class ProcessLauncher {
 public:
  ProcessLauncher(int& argc, char**& argv) : environment_(argc, argv) {
    const auto world = environment_.world();
    ranks_ = world.size(), first_ = world.rank() == 0;
    here_ = environment_.here();
  }

  /// The program itself, on every rank: a failure ends the job, with its rank and text.
  template <class Body>
  int guarded(const char*, Body&& body) {
    int status = 0;
    environment_.guard([&] { status = body(); });
    return status;
  }

  /// Reads the flags, see read_flags; the first rank speaks.
  std::optional<int> parse(CLI::App& app, int argc, char** argv) {
    time_out_.add_to(app);
    const auto status = read_flags(app, argc, argv, first_);
    environment_.set_time_out(time_out());
    return status;
  }

  int ranks() const { return ranks_; }
  bool first() const { return first_; }

 protected:
  dflash::MpiCommunicator world() { return environment_.world(); }
  /// This rank among those of its machine.
  dflash::Share here() const { return here_; }
  std::chrono::duration<double> time_out() const { return time_out_.time(); }

 private:
  dflash::MpiEnvironment environment_;
  int ranks_ = 1;
  bool first_ = true;
  dflash::Share here_;
  TimeOutFlag time_out_;
};

}  // namespace examples
