#include "dflash/nccl.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <string>

#include "comm/communicator_suite.hpp"
#include "dflash/comm/thread_communicator.hpp"
#include "dflash/cuda/elementwise.cuh"
#include "dflash/cuda/sum_of_parts.cuh"

namespace nccl_test {

// NcclCommunicator between ranks that are threads: through the emulated seam, or compiled by nvcc,
// as gpu_nccl_test, with NCCL itself and as many ranks as there are GPUs.

using namespace dflash;
using namespace std::chrono_literals;
using Nccl = NcclCommunicator<ThreadCommunicator>;
using B = CudaBackend<float>;

static_assert(CommunicatorFor<Nccl, B>);
static_assert(CommunicatorFor<Nccl, CudaBackend<bfloat16>>);

int most_ranks() {
#if defined(__CUDACC__)
  int gpus = 0;
  cudaGetDeviceCount(&gpus);
  return gpus;
#else
  return 4;
#endif
}

/// body(host) on every rank, each with its own GPU.
template <class Body>
void run_ranks(int ranks, Body body, ThreadOptions options = {}) {
  ThreadCommunicator::run(
      ranks,
      [&](ThreadCommunicator host) {
        // Of one device, whoever frees memory would wait for the other ranks' work too.
        cuda_expects(cudaSetDevice(host.rank()), "the rank's GPU");
        body(std::move(host));
      },
      options);
}

TEST_CASE("ranks that hold a GPU each are ranks of a communicator") {
  for (const int ranks : {1, 2, 3, 4}) {
    if (ranks > most_ranks()) continue;
    CAPTURE(ranks);
    communicator_suite::check_communicator<B>([&](auto body) {
      run_ranks(ranks, [&](ThreadCommunicator host) { body(Nccl(std::move(host))); },
                {.time_out = 60s});
    });
  }
}

TEST_CASE("a sum is the same in rounds" * doctest::skip(most_ranks() < 3)) {
  run_ranks(3, [](ThreadCommunicator host) {
    Nccl comm(std::move(host), {.scratch_bytes = 3 * 4 * 7});
    communicator_suite::check_sums<B, float>(comm);
    communicator_suite::check_sums<B, double>(comm);
  });
}

TEST_CASE("a rank that stalls is named, and the job ends" * doctest::skip(most_ranks() < 3)) {
  std::string text;
  try {
    run_ranks(3,
              [](ThreadCommunicator host) {
                const int rank = host.rank();
                Nccl comm(std::move(host), {.time_out = 1500ms});
                B backend;
                Tensor<B, float, 1> x(backend, {1000});
                fill(backend, x.view(), 1);
                comm.all_reduce_sum(backend, x.view());
                if (rank == 1) std::this_thread::sleep_for(4500ms);
                comm.all_reduce_sum(backend, x.view());
                backend.synchronize();
                comm.barrier();
              },
              {.time_out = 2s});
  } catch (const Error& error) {
    text = error.what();
  }
  INFO(text);
  CHECK(text.find("for rank 1") != std::string::npos);
}

TEST_CASE("a rank that fails releases those whose devices wait for it" *
          doctest::skip(most_ranks() < 3)) {
  std::string text;
  const auto start = std::chrono::steady_clock::now();
  try {
    run_ranks(3, [](ThreadCommunicator host) {
      const int rank = host.rank();
      Nccl comm(std::move(host));
      B backend;
      Tensor<B, float, 1> x(backend, {1000});
      fill(backend, x.view(), 1);
      comm.all_reduce_sum(backend, x.view());
      if (rank == 1) throw Error("the file cannot be read");
      comm.all_reduce_sum(backend, x.view());
      backend.synchronize();
    });
  } catch (const Error& error) {
    text = error.what();
  }
  CHECK(text == "rank 1 failed: the file cannot be read");
  CHECK(std::chrono::steady_clock::now() - start < 60s);  // time-outs are minutes
}

}  // namespace nccl_test
