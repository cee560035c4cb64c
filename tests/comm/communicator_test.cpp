#include "communicator_suite.hpp"

namespace communicator_test {

using namespace dflash;

static_assert(CommunicatorFor<SingleProcess, CpuBackend<float>>);
static_assert(CommunicatorFor<SingleProcess, CpuBackend<double>>);
static_assert(!Communicator<int>);

TEST_CASE("a single process is a communicator of one rank") {
  communicator_suite::check_communicator([](auto body) { body(SingleProcess()); });
}

TEST_CASE("a single process aborts with an error") {
  CHECK_THROWS_WITH_AS(SingleProcess().abort("disk full"), "disk full", Error);
}

TEST_CASE("a single process finds counts that differ") {
  CpuBackend<float> backend;
  const std::vector<float> in(2);
  std::vector<float> out(3);
  const std::vector<index_t> two{2}, three{3};
  CHECK_THROWS_WITH_AS(SingleProcess().all_to_all(backend, communicator_suite::view(in), two,
                                                  communicator_suite::view(out), three),
                       "all_to_all: rank 0 sends 2 elements to itself and expects 3", Error);
}

}  // namespace communicator_test
