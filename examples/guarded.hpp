#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

namespace examples {

/// What a program says of wrong flags: one sentence.
inline std::string flag_failure(const CLI::App* app, const CLI::Error& error) {
  return app->get_name() + ": " + error.what() + " (--help lists the flags)\n";
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
