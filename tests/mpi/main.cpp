#define DOCTEST_CONFIG_IMPLEMENT
#include "main.hpp"

#include <doctest/doctest.h>

namespace {
dflash::MpiEnvironment* environment = nullptr;
}

dflash::MpiEnvironment& mpi() { return *environment; }

int main(int argc, char** argv) {
  dflash::MpiEnvironment here(argc, argv, {.time_out = std::chrono::seconds(60)});
  environment = &here;
  return doctest::Context(argc, argv).run();
}
