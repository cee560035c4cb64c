#include "dflash/cuda/uploads.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "cuda/support.hpp"
#include "data/store_fixture.hpp"
#include "dflash/core/host_copy.hpp"
#include "dflash/data/prefetch.hpp"

namespace uploads_test {

using namespace dflash;
using B = CudaBackend<float>;

/// So much that it goes round the pinned memory, which the host then has to wait for.
constexpr index_t much = (index_t(40) << 20) / sizeof(float);

/// Uploads numbers that lie at x.
template <class Uploads>
void upload(Uploads&& uploads, const float* x, float* here, index_t n) {
  uploads.upload_rows(
      n, 1, here, [&](Range some, float* out) { std::copy_n(x + some.begin, some.size(), out); });
}

template <class T>
std::vector<std::uint16_t> bits(const std::vector<T>& values) {
  std::vector<std::uint16_t> all(values.size() * sizeof(T) / 2);
  std::memcpy(all.data(), values.data(), values.size() * sizeof(T));
  return all;
}

/// Batches of stored samples on a GPU have the rows' floats, rounded.
template <class T>
void check_stored_features(DType dtype) {
  const TemporaryFolder folder;
  const StoreFixture data(25, dtype);
  data.capture(folder.path());
  const OfflineShardDataset dataset(folder.path());
  CudaBackend<T> cuda;
  const SequenceParallelGroup group(SingleProcess{});
  std::vector<Sample> samples;
  std::vector<Blocks> blocks;
  std::vector<T> expected;
  for (index_t i = 0; i < dataset.size(); ++i) {
    samples.push_back(dataset[i]);
    const TokenizedSample& text = data.samples[std::size_t(i)];
    blocks.push_back(blocks_at(text.tokens, text.loss_mask, {index_t(text.tokens.size()) - 1}, 2));
    const index_t rows = blocks.back().context_rows(), width = samples.back().features->width();
    const std::vector<float> floats = all_rows(*samples.back().features);
    for (index_t k = 0; k < rows * width; ++k) expected.push_back(T(floats[std::size_t(k)]));
  }
  auto batch = shard(cuda, group, samples, blocks, 0);
  CHECK(batch.features.size() > 12 * 25);
  CHECK(bits(downloaded(cuda, batch.features.rows().wide())) == bits(expected));
}

TEST_CASE("uploads beside the work land before what is given after them") {
  B cuda;
  for (const index_t n : {0, 1, 1000, 70001}) {
    const auto x = dflash_test::random<float>(n, 1);
    Tensor<B, float, 1> a(cuda, {n}), b(cuda, {n});
    {
      auto uploads = uploads_beside(cuda);
      upload(uploads, x.data(), a.view().data, n / 3);
      upload(uploads, x.data() + n / 3, a.view().data + n / 3, n - n / 3);
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
  upload(uploads_beside(cuda), after.data(), again.view().data, much);
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
    upload(uploads, x.data(), there.view().data, much);
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
      upload(uploads, x.data() + row, batch.view().data + row, 500);
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

TEST_CASE("several threads fill what goes up, and each piece once") {
  B cuda;
  const index_t rows = 1001, width = 7;
  const auto x = dflash_test::random<float>(rows * width, 1);
  for (const int threads : {1, 3}) {
    CudaUploadLane lane(threads, 5 * std::size_t(width) * sizeof(float) + 3);
    for (int time = 0; time < 3; ++time) {
      Tensor<B, float, 2> there(cuda, {rows, width});
      std::mutex mutex;
      std::vector<int> filled(std::size_t(rows), 0);
      std::set<std::thread::id> fillers;
      CudaUploads(cuda.stream(), lane)
          .upload_rows(rows, width, there.view().data, [&](Range some, float* out) {
            std::copy_n(x.data() + some.begin * width, some.size() * width, out);
            const std::lock_guard lock(mutex);
            CHECK(some.size() <= 5);
            for (index_t row = some.begin; row < some.end; ++row) filled[std::size_t(row)] += 1;
            fillers.insert(std::this_thread::get_id());
          });
      CHECK(downloaded(cuda, there.view()) == x);
      CHECK(std::all_of(filled.begin(), filled.end(), [](int times) { return times == 1; }));
      CHECK(int(fillers.size()) <= threads);
    }
  }
}

TEST_CASE("an upload whose rows cannot be read throws, and the next one goes well") {
  B cuda;
  const auto x = dflash_test::random<float>(1000, 1);
  CudaUploadLane lane(3, 64);
  Tensor<B, float, 1> there(cuda, {1000});
  const auto broken = [&](Range some, float* out) {
    if (some.end > 700) throw Error("row 700 is damaged");
    std::copy_n(x.data() + some.begin, some.size(), out);
  };
  CHECK_THROWS_WITH_AS(
      CudaUploads(cuda.stream(), lane).upload_rows(1000, 1, there.view().data, broken),
      "row 700 is damaged", Error);
  upload(CudaUploads(cuda.stream(), lane), x.data(), there.view().data, 1000);
  CHECK(downloaded(cuda, there.view()) == x);
  CHECK_THROWS_AS(CudaUploads(cuda.stream(), lane).upload_rows(1, 1000, there.view().data, broken),
                  Error);
}

TEST_CASE("stored features reach the device with the bits of their floats, rounded") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f8_e4m3}) {
    check_stored_features<float>(dtype);
    check_stored_features<bfloat16>(dtype);
  }
}

}  // namespace uploads_test
