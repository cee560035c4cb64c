#include "dflash/cuda/uploads.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "cuda/support.hpp"
#include "dflash/core/host_copy.hpp"
#include "dflash/data/prefetch.hpp"

using namespace dflash;
using B = CudaBackend<float>;

namespace {

/// So much that it goes round the pinned memory, which the host then has to wait for.
constexpr index_t much = (index_t(40) << 20) / sizeof(float);

}  // namespace

TEST_CASE("uploads beside the work land before what is given after them") {
  B cuda;
  for (const index_t n : {0, 1, 1000, 70001}) {
    const auto x = dflash_test::random<float>(n, 1);
    Tensor<B, float, 1> a(cuda, {n}), b(cuda, {n});
    {
      auto uploads = uploads_beside(cuda);
      uploads.upload(x.data(), a.view().data, n / 3);
      uploads.upload(x.data() + n / 3, a.view().data + n / 3, n - n / 3);
    }
    cuda.copy(a.view().data, b.view().data, n);
    CHECK(downloaded(cuda, b.view()) == x);
  }
}

TEST_CASE("uploads beside the work wait for what it had still to do with the memory") {
  B cuda;
  const std::vector<float> before(std::size_t(much), 1.0f), after(std::size_t(much), 2.0f);
  Tensor<B, float, 1> kept(cuda, {much});
  const float* block = nullptr;
  {
    Tensor<B, float, 1> freed(cuda, {much});
    block = freed.view().data;
    cuda.upload(before.data(), freed.view().data, much);
    cuda.copy(freed.view().data, kept.view().data, much);
  }
  Tensor<B, float, 1> again(cuda, {much});
  REQUIRE(again.view().data == block);
  { uploads_beside(cuda).upload(after.data(), again.view().data, much); }
  CHECK(downloaded(cuda, kept.view()) == before);
  CHECK(downloaded(cuda, again.view()) == after);
}

TEST_CASE("uploads beside the work do not wait for what is given later") {
  B cuda;
  const std::vector<float> x(std::size_t(much), 3.0f);
  Tensor<B, float, 1> there(cuda, {much});
  bool worked = false;
  {
    auto uploads = uploads_beside(cuda);
    cuda_emulation::enqueue(cuda.stream(), [&] { worked = true; });
    uploads.upload(x.data(), there.view().data, much);
    CHECK(!worked);
  }
  CHECK(downloaded(cuda, there.view()) == x);
  CHECK(worked);
}

TEST_CASE("batches are made on another thread while earlier ones are worked on") {
  B cuda;
  const index_t n = 3000;
  const auto values = [&](index_t i) { return std::vector<float>(std::size_t(n), float(i)); };
  Prefetch batches(0, 40, [&](index_t i) {
    Tensor<B, float, 1> batch(cuda, {n});
    auto uploads = uploads_beside(cuda);
    const auto x = values(i);
    for (index_t row = 0; row < n; row += 500)
      uploads.upload(x.data() + row, batch.view().data + row, 500);
    return batch;
  });
  std::vector<Tensor<B, float, 1>> results;
  for (index_t i = 0; i < 40; ++i) {
    const auto batch = batches.next();
    results.push_back(Tensor<B, float, 1>(cuda, {n}));
    cuda.copy(batch.view().data, results.back().view().data, n);
  }
  for (index_t i = 0; i < 40; ++i)
    CHECK(downloaded(cuda, results[std::size_t(i)].view()) == values(i));
}
