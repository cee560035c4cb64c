#include <doctest/doctest.h>

#include <chrono>

#include "../main.hpp"
#include "comm/communicator_suite.hpp"
#include "dflash/cuda/elementwise.cuh"
#include "dflash/cuda/sum_of_parts.cuh"
#include "dflash/nccl.hpp"

using namespace dflash;
using Nccl = NcclCommunicator<MpiCommunicator>;
using B = CudaBackend<float>;

static_assert(CommunicatorFor<Nccl, B>);

TEST_CASE("MPI processes that hold a GPU each are ranks of a communicator") {
  communicator_suite::check_communicator<B>([](auto body) { body(Nccl(mpi().world())); });
}
