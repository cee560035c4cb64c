#include "comm/communicator_suite.hpp"
#include "dflash/comm/thread_communicator.hpp"
#include "main.hpp"

using namespace dflash;

static_assert(CommunicatorFor<MpiCommunicator, CpuBackend<float>>);
static_assert(CommunicatorFor<MpiCommunicator, CpuBackend<double>>);

TEST_CASE("MPI processes are ranks of a communicator") {
  communicator_suite::check_communicator([](auto body) { body(mpi().world()); });
}

TEST_CASE("blocks over the limit of a message go in pieces, sums in rounds") {
  for (const index_t bytes : {24, 1000, 4096}) {
    CAPTURE(bytes);
    communicator_suite::check_communicator(
        [&](auto body) { body(mpi().world({.message_bytes = bytes, .scratch_bytes = bytes})); });
  }
}

TEST_CASE("sums have the bits of the sums of threads") {
  CpuBackend<float> backend;
  const auto summed = [&](auto& comm) {
    auto data = communicator_suite::values<float>(comm.rank(), 5000);
    comm.all_reduce_sum(backend, communicator_suite::view(data));
    return data;
  };
  MpiCommunicator world = mpi().world();
  const auto of_processes = summed(world);
  std::vector<float> of_threads;
  ThreadCommunicator::run(world.size(), [&](ThreadCommunicator comm) {
    CpuBackend<float> own;
    auto data = communicator_suite::values<float>(comm.rank(), 5000);
    comm.all_reduce_sum(own, communicator_suite::view(data));
    if (comm.rank() == 0) of_threads = data;
  });
  CHECK(communicator_suite::same_bits(of_processes, of_threads));
}

TEST_CASE("one environment at a time") {
  int none = 0;
  char** arguments = nullptr;
  CHECK_THROWS_AS(MpiEnvironment(none, arguments), Error);
}

TEST_CASE("a communicator without a team says so") {
  MpiCommunicator nobody;
  CHECK(nobody.size() == 0);
  CHECK_THROWS_AS(nobody.barrier(), Error);
}
