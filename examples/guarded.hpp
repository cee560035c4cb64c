#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

namespace examples {

/// What a program says of wrong flags: one sentence.
inline std::string flag_failure(const CLI::App* app, const CLI::Error& error) {
  std::string what = error.what();
  // CLI11 lists what it does not know from the last to the first.
  if (error.get_exit_code() == int(CLI::ExitCodes::ExtrasError))
    for (const std::string& unknown : app->remaining())
      if (unknown != "--") {
        what = unknown + (unknown.front() == '-' ? " is not a flag" : " belongs to no flag");
        break;
      }
  return app->get_name() + ": " + what + " (--help lists the flags)\n";
}

/// Runs a program's body; a failure is one sentence on the error output and exit status 1.
template <class Body>
int guarded(const char* program, Body&& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: %s\n", program, error.what());
    return 1;
  }
}

}  // namespace examples
