#pragma once

#include <CLI/CLI.hpp>
#include <exception>
#include <optional>

#include "dflash/comm/thread_communicator.hpp"
#include "flag_checks.hpp"
#include "guarded.hpp"
#include "launch/flags.hpp"

namespace examples {

/// What launchers share whose ranks are threads of this process.
class ThreadLauncher {
 public:
  /// The program itself; a failure is one sentence and exit status 1.
  template <class Body>
  int guarded(const char* program, Body&& body) {
    return examples::guarded(program, body);
  }

  int ranks() const { return ranks_; }
  bool first() const { return true; }

 protected:
  /// Reads the flags, see read_flags. `each` says what a rank is.
  std::optional<int> parse(CLI::App& app, int argc, char** argv, const char* each) {
    app.add_option("--ranks", ranks_, each)->capture_default_str()->check(above_zero());
    time_out_.add_to(app);
    return read_flags(app, argc, argv);
  }

  std::chrono::duration<double> time_out() const { return time_out_.time(); }

  /// Runs body(world) on every rank. A failure is thrown once, with the rank if there are several.
  template <class Body>
  void run_threads(Body&& body) {
    try {
      dflash::ThreadCommunicator::run(ranks_, body, {.time_out = time_out()});
    } catch (const std::exception& failure) {
      if (ranks_ == 1) std::rethrow_if_nested(failure);
      throw;
    }
  }

 private:
  int ranks_ = 1;
  TimeOutFlag time_out_;
};

}  // namespace examples
