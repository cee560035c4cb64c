#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <optional>
#include <sstream>

#include "flag_checks.hpp"

namespace examples {

/// Reads the flags. Returns the status to end with, if that is all there was to do: what is wrong
/// with them, or the help, is told by the rank that speaks.
inline std::optional<int> read_flags(CLI::App& app, int argc, char** argv, bool speaks = true) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream silence;
    return speaks ? app.exit(error) : app.exit(error, silence, silence);
  }
  return {};
}

/// How long a rank waits for another.
struct TimeOutFlag {
  double minutes = 30;

  void add_to(CLI::App& app) {
    app.add_option("--dist-timeout", minutes, "minutes a rank waits for another")
        ->capture_default_str()
        ->check(above_zero());
  }
  std::chrono::duration<double> time() const { return std::chrono::duration<double>(60 * minutes); }
};

}  // namespace examples
