#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/random.hpp"
#include "dflash/cuda/hopper.cuh"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/warp.cuh"

namespace emulation_test {

using namespace dflash;
using cuda::launch;
using cuda_emulation::Misuse;

[[maybe_unused]] int races_seen = 0;
bool races_expected = false;

/// While it lives the thread sanitizer may report.
struct ExpectedRaces {
  ExpectedRaces() { races_expected = true; }
  ~ExpectedRaces() { races_expected = false; }
};

#if defined(__SANITIZE_THREAD__)
extern "C" const char* __tsan_default_options() { return "exitcode=0"; }
extern "C" void __tsan_on_report(void*) {
  ++races_seen;
  if (!races_expected) std::abort();
}
#endif

/// n numbers of device memory, seen from the host only through copies.
template <class T>
struct Device {
  T* data = nullptr;
  std::size_t n;
  explicit Device(std::vector<T> host) : n(host.size()) {
    cuda_expects(cudaMalloc(reinterpret_cast<void**>(&data), n * sizeof(T)), "memory");
    cudaMemcpyAsync(data, host.data(), n * sizeof(T), cudaMemcpyHostToDevice, nullptr);
  }
  ~Device() { cudaFree(data); }
  std::vector<T> host() const {
    std::vector<T> h(n);
    cudaMemcpyAsync(h.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost, nullptr);
    return h;
  }
};

template <class Kernel, class... A>
void run(Kernel kernel, unsigned blocks, unsigned threads, std::size_t shared, A... a) {
  launch(nullptr, kernel, blocks, threads, shared, a...);
  cudaStreamSynchronize(nullptr);
}

template <class F>
bool is_misuse(F f, const std::string& part) {
  try {
    f();
  } catch (const Misuse& e) {
    return std::string(e.what()).find(part) != std::string::npos;
  }
  return false;
}

__global__ void reverse(float* x, bool barrier) {
  float* const shared = cuda::shared_memory<float>();
  shared[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
  if (barrier) __syncthreads();
  x[blockIdx.x * blockDim.x + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void copy_through(const float* from, float* to, bool wait) {
  float* const shared = cuda::shared_memory<float>();
  const unsigned i = 4 * threadIdx.x;
  cuda::copy_async_16(shared + i, from + i);
  cuda::copy_async_commit();
  cuda::copy_async_16(shared + 512 + i, from + i, threadIdx.x == 1 ? 8 : 0);
  cuda::copy_async_commit();
  if (wait) cuda::copy_async_wait<1>();
  for (unsigned j = 0; j < 4; ++j) to[i + j] = shared[i + j];
  cuda::copy_async_wait<0>();
  for (unsigned j = 0; j < 4; ++j) to[4 * blockDim.x + i + j] = shared[512 + i + j];
}

/// c = a b.                             a (16, 16)  b (16, 8), as bfloat16  c (16, 8)
__global__ void multiply(const bfloat16* a, const bfloat16* b, float* c) {
  auto* const shared = cuda::shared_memory<bfloat16>();
  bfloat16* const shared_b = shared + 256;
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) shared[i] = a[i];
  for (unsigned i = lane; i < 128; i += 32) shared_b[i] = b[i];
  __syncwarp();
  std::uint32_t fragment_a[4], fragment_b[4];
  cuda::load_matrices(fragment_a, shared + lane % 16 * 16 + lane / 16 * 8);
  cuda::load_matrices_transposed(fragment_b, shared_b + lane % 16 * 8);
  float sum[4] = {};
  cuda::multiply_add(sum, fragment_a, {fragment_b[0], fragment_b[1]});
  const unsigned row = lane / 4, column = lane % 4 * 2;
  for (unsigned j = 0; j < 4; ++j) c[(row + j / 2 * 8) * 8 + column + j % 2] = sum[j];
}

/// Two products of one group of four warps, 64 x 64 ones times 64 x 64 twos over 16 columns, the
/// second a group of products of its own. Of this thread's first sum of each: what it is after a
/// wait that leaves one under way, and after all have ended.
__global__ void two_groups_of_products(float* seen, bool hasty) {
  bfloat16* const ones = cuda::panel_memory<bfloat16>();
  bfloat16* const twos = ones + 64 * 64;
  for (unsigned i = threadIdx.x; i < 64 * 64; i += 128)
    ones[i] = bfloat16(1.0f), twos[i] = bfloat16(2.0f);
  __syncthreads();
  float first[8][4] = {}, second[8][4] = {};
  cuda::multiply_group<false>(first, cuda::describe(ones), cuda::describe(twos));
  cuda::commit_group_products();
  cuda::multiply_group<true>(second, cuda::describe(twos), cuda::describe(twos));
  cuda::commit_group_products();
  cuda::wait_group_products<1>(hasty ? second : first);
  seen[threadIdx.x] = first[0][0];
  seen[128 + threadIdx.x] = second[0][0];
  cuda::wait_group_products<0>(second);
  seen[256 + threadIdx.x] = second[7][3];
}

__global__ void sums(const float* x, float* warp, float* block) {
  const float mine = x[threadIdx.x];
  warp[threadIdx.x] = cuda::warp_sum(mine);
  block[threadIdx.x] = cuda::block_sum(mine, cuda::shared_memory<float>());
}

/// Adds, in shared memory and then in x: nobody else's number, a neighbour's without a barrier, or
/// that of another block.
[[maybe_unused]] __global__ void add_next(float* x, int whose) {
  float* const shared = cuda::shared_memory<float>();
  const unsigned at = threadIdx.x, here = blockIdx.x * blockDim.x;
  shared[at] = x[here + at];
  const float next = shared[whose == 1 ? (at + 1) % blockDim.x : at];
  x[whose == 2 ? at : here + at] = next;
}

__global__ void half_a_barrier() {
  if (threadIdx.x < 16) __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void shuffle_of(unsigned lanes, unsigned mask) {
  if (threadIdx.x < lanes) __shfl_xor_sync(mask, 1, 1);
}
__global__ void crooked_copy(const float* x) {
  cuda::copy_async_16(cuda::shared_memory<float>() + 1, x);
}
__global__ void write_at(std::size_t i) {
  static_cast<volatile char*>(cuda_emulation::shared_memory())[i] = 1;
}

std::vector<float> counting(std::size_t n) {
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = float(i + 1);
  return x;
}

TEST_CASE("threads of a block meet at a barrier, and one that is missing shows") {
  bool wrong = false;
  for (std::uint64_t seed = 1; seed < 5; ++seed) {
    cuda_emulation::set_seed(seed);
    Device<float> x(counting(400));
    run(reverse, 4, 100, 400, x.data, true);
    const auto y = x.host();
    for (std::size_t i = 0; i < 400; ++i) CHECK(y[i] == float(i / 100 * 100 + 100 - i % 100));
    const ExpectedRaces races;
    run(reverse, 4, 100, 400, x.data, false);
    for (float v : x.host()) wrong = wrong || std::isnan(v);
  }
  CHECK(wrong);
}

#if defined(__SANITIZE_THREAD__)
TEST_CASE("the thread sanitizer sees races within a block and between blocks, and no others") {
  Device<float> x(counting(128));
  for (int index : {0, 1, 2}) {
    const ExpectedRaces races;
    const int before = races_seen;
    run(add_next, 2, 64, 256, x.data, index);
    CHECK((races_seen > before) == (index > 0));
  }
}
#endif

TEST_CASE("an asynchronous copy lands when it is waited for") {
  for (bool wait : {true, false}) {
    Device<float> x(counting(128)), y(std::vector<float>(256));
    run(copy_through, 1, 32, 4096, x.data, y.data, wait);
    const auto z = y.host();
    for (std::size_t i = 0; i < 128; ++i) {
      CHECK((wait ? z[i] == float(i + 1) : std::isnan(z[i])));
      CHECK(z[128 + i] == (i == 4 || i == 5 ? float(i + 1) : 0));
    }
  }
}

TEST_CASE("the fragments of a matrix product lie where the instructions have them") {
  std::vector<bfloat16> a, b;
  for (index_t i = 0; i < 256; ++i) a.emplace_back(float(Random(1).normal(std::uint64_t(i))));
  for (index_t i = 0; i < 128; ++i) b.emplace_back(float(Random(2).normal(std::uint64_t(i))));
  Device<bfloat16> da(a), db(b);
  Device<float> dc(std::vector<float>(128));
  run(multiply, 1, 32, 768, da.data, db.data, dc.data);
  const auto c = dc.host();
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t j = 0; j < 8; ++j) {
      double sum = 0;
      for (std::size_t k = 0; k < 16; ++k)
        sum += double(float(a[i * 16 + k])) * float(b[k * 8 + j]);
      CHECK(std::abs(c[i * 8 + j] - sum) < 1e-5);
    }
}

TEST_CASE("products of a group of warps land when their own group is waited for") {
  Device<float> seen(std::vector<float>(384));
  run(two_groups_of_products, 1, 128, 4 * 64 * 64, seen.data, false);
  const auto x = seen.host();
  for (std::size_t i = 0; i < 128; ++i) {
    CHECK(x[i] == 32);
    CHECK(std::isnan(x[128 + i]));
    CHECK(x[256 + i] == 64);
  }
}

TEST_CASE("sums of a warp and of a block reach every thread") {
  Device<float> x(counting(96)), warp(counting(96)), block(counting(96));
  run(sums, 1, 96, 128, x.data, warp.data, block.data);
  const auto w = warp.host(), b = block.host();
  for (std::size_t i = 0; i < 96; ++i) {
    CHECK(w[i] == float(32 * 33 / 2 + 32 * 32 * (i / 32)));
    CHECK(b[i] == 96 * 97 / 2);
  }
}

TEST_CASE("what the device forbids is refused, by name") {
  CHECK(is_misuse([] { run(half_a_barrier, 1, 32, 0); }, "16 wait at a barrier, 16 have returned"));
  CHECK(is_misuse([] { run(two_barriers, 1, 32, 0); }, "two barriers"));
  CHECK(is_misuse([] { run(shuffle_of, 1, 32, 0, 31u, ~0u); }, "__shfl_xor_sync waits for lanes"));
  CHECK(is_misuse([] { run(shuffle_of, 1, 31, 0, 31u, ~0u); }, "does not have"));
  CHECK(is_misuse([] { run(shuffle_of, 1, 32, 0, 32u, 1u); }, "not in the mask"));
  CHECK(is_misuse([] { run(half_a_barrier, 1, 1025, 0); }, "1025 threads"));
  Device<float> x(counting(8));
  CHECK(is_misuse([&] { run(crooked_copy, 1, 1, 64, x.data); }, "aligned"));
  CHECK(is_misuse([] { launch(nullptr, two_barriers, 1, 1, 0), __syncthreads(); }, "outside"));
  Device<float> seen(std::vector<float>(384));
  CHECK(is_misuse([&] { run(two_groups_of_products, 1, 128, 4 * 64 * 64, seen.data, true); },
                  "still under way"));
  CHECK_THROWS_AS(run(half_a_barrier, 1, 32, 228 << 10), Error);
#if !defined(__SANITIZE_ADDRESS__)  // which would end the program
  CHECK(is_misuse([] { run(write_at, 1, 1, 100, std::size_t(100)); }, "past its shared memory"));
#endif
  run(write_at, 1, 1, 100, std::size_t(99));  // and after all that, the device still works
}

TEST_CASE("a stream runs when somebody waits for it, after the streams that it waits for") {
  cudaStream_t first, second;
  cudaEvent_t event;
  cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  Device<float> x(counting(100));
  cudaStreamSynchronize(nullptr);
  float* pinned = nullptr;
  cudaHostAlloc(reinterpret_cast<void**>(&pinned), 400, cudaHostAllocDefault);
  launch(first, reverse, 1, 100, 400, x.data, true);
  cudaEventRecord(event, first);
  CHECK(cudaEventQuery(event) == cudaErrorNotReady);
  cudaStreamWaitEvent(second, event);
  cudaMemcpyAsync(pinned, x.data, 400, cudaMemcpyDeviceToHost, second);
  CHECK(std::isnan(pinned[0]));
  cudaStreamSynchronize(second);
  CHECK(pinned[0] == 100);
  CHECK(cudaEventQuery(event) == cudaSuccess);
  CHECK(is_misuse([&] { cudaMemcpyAsync(pinned, x.data + 1, 400, cudaMemcpyDeviceToHost, second); },
                  "leaves"));
  cudaFreeHost(pinned);
  cudaEventDestroy(event);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
}

}  // namespace emulation_test
