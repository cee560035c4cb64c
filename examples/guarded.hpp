#pragma once

#include <cstdio>
#include <exception>

namespace examples {

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
