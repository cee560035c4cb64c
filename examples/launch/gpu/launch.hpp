#pragma once

#include "dflash/comm/communicator.hpp"
#include "guarded.hpp"
#include "launch/flags.hpp"

namespace examples {

/// How a program gets its ranks: here, it is the only one, on the first GPU.
class Launcher {
 public:
  Launcher(int&, char**&) {}

  /// The program itself; a failure is one sentence and exit status 1.
  template <class Body>
  int guarded(const char* program, Body&& body) {
    return examples::guarded(program, body);
  }

  std::optional<int> parse(CLI::App& app, int argc, char** argv) {
    return read_flags(app, argc, argv);
  }

  int ranks() const { return 1; }
  bool first() const { return true; }
  int threads(int) const { return 1; }

  template <class Body>
  void run(Body&& body) {
    body(dflash::SingleProcess());
  }
};

}  // namespace examples
