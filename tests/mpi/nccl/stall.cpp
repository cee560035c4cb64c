// Rank 1 of a job whose ranks hold a GPU each stalls: the others must name it and end the job.

#include <chrono>
#include <thread>

#include "dflash/cuda/elementwise.cuh"
#include "dflash/cuda/sum_of_parts.cuh"
#include "dflash/mpi.hpp"
#include "dflash/nccl.hpp"

using namespace dflash;
using namespace std::chrono_literals;

int main(int argc, char** argv) {
  MpiEnvironment mpi(argc, argv, {.time_out = 2s});
  mpi.run([](MpiCommunicator host) {
    NcclCommunicator world(std::move(host), {.time_out = 1s});
    CudaBackend<float> backend;
    Tensor<CudaBackend<float>, float, 1> x(backend, {1000});
    fill(backend, x.view(), 1);
    world.all_reduce_sum(backend, x.view());
    backend.synchronize();
    world.barrier();
    if (world.rank() == 1)
      for (;;) std::this_thread::sleep_for(1s);
    world.all_reduce_sum(backend, x.view());
    backend.synchronize();
  });
}
