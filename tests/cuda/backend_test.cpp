#include <doctest/doctest.h>

#include <vector>

#include "cuda/support.hpp"

namespace backend_test {

using namespace dflash;
using namespace dflash_test;

TEST_CASE("what is uploaded comes back, in the order of the stream") {
  CudaBackend<float> cuda;
  for (index_t n : {0, 1, 1000, 70001}) {
    auto x = random<float>(n, 1);
    const auto kept = x;
    Tensor<CudaBackend<float>, float, 1> a(cuda, {n}), b(cuda, {n});
    cuda.upload(x.data(), a.view().data, n);
    x.assign(x.size(), 0);  // the caller's memory is its own again
    cuda.copy(a.view().data, b.view().data, n);
    std::vector<float> y(at(n));
    cuda.download(b.view().data, y.data(), n);
    CHECK(y == kept);
  }
}

TEST_CASE("uploads go round the ring of pinned memory") {
  cudaStream_t stream;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  CudaBackend<float> cuda;
  const auto x = random<float>(5000, 1);
  {
    CudaStaging staging(4096);
    Tensor<CudaBackend<float>, float, 1> a(cuda, {5000});
    cuda.synchronize();  // memory is the backend's stream's until then
    for (index_t from = 0, n = 1; from < 5000;
         from += n, n = std::min<index_t>(n + 97, 5000 - from))
      staging.upload(stream, x.data() + from, a.view().data + from, at(n) * sizeof(float));
    cudaStreamSynchronize(stream);
    std::vector<float> y(5000);
    cuda.download(a.view().data, y.data(), 5000);
    CHECK(y == x);
  }
  cudaStreamDestroy(stream);
}

TEST_CASE(
    "steps that are alike ask the system for memory only at first, and results do not change") {
  CudaBackend<bfloat16> cuda;
  const auto x = numbers<bfloat16>(64 * 48, 1), w = numbers<bfloat16>(40 * 48, 2);
  const auto step = [&] {
    OnDevice<bfloat16> tx(cuda, x), tw(cuda, w), ty(cuda, std::vector<float>(64 * 40));
    OnDevice<float> tdw(cuda, std::vector<float>(40 * 48));
    linear<bfloat16>(cuda, tx.matrix(64, 48), tw.matrix(40, 48), ty.matrix(64, 40));
    linear_backward_weight<bfloat16>(cuda, ty.matrix(64, 40), tx.matrix(64, 48),
                                     tdw.matrix(40, 48));
    return tdw.host(cuda);
  };
  const auto first = step();
  const index_t allocations = cuda.system_allocations();
  for (int i = 0; i < 3; ++i) CHECK(step() == first);
  CHECK(cuda.system_allocations() == allocations);
}

TEST_CASE("memory may outlive its backend, and a backend may move") {
  CachedBuffer<float> kept;
  {
    CudaBackend<float> first;
    CudaBackend<float> cuda = std::move(first);
    kept = cuda.allocate<float>(10);
    CHECK_THROWS_AS(cuda.allocate<float>(-1), Error);
  }
  CHECK(kept.size() == 10);
}

}  // namespace backend_test
