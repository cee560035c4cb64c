#include <doctest/doctest.h>

#include <cstdint>
#include <thread>
#include <vector>

#include "cpu/support.hpp"
#include "dflash/cpu.hpp"

namespace backend_test {

using namespace dflash;
using namespace dflash_test;

TEST_CASE("memory is aligned, and comes again once it was given back") {
  CpuBackend<float> backend;
  for (index_t n : {0, 1, 15, 17, 1000, 100000}) {
    auto x = backend.allocate<float>(n);
    CHECK(reinterpret_cast<std::uintptr_t>(x.data()) % 64 == 0);
    CHECK(x.size() == n);
    for (index_t i = 0; i < n; ++i) x.data()[i] = float(i);
  }
  const index_t before = backend.system_allocations();
  for (int round = 0; round < 10; ++round) {
    auto x = backend.allocate<double>(500);
    auto y = backend.allocate<std::uint8_t>(4000 - round * 10);
    auto z = std::move(x);
    x = backend.allocate<double>(500);
    CHECK(z.data() != x.data());
  }
  CHECK(backend.system_allocations() <= before + 3);
  CHECK_THROWS_AS(backend.allocate<float>(-1), Error);
}

TEST_CASE("a size class is never smaller than asked, nor much larger") {
  for (std::size_t bytes = 1; bytes < 100000; bytes += 37) {
    const std::size_t size = MemoryCache::size_class(bytes);
    CHECK(size >= bytes);
    CHECK(size <= bytes + std::max<std::size_t>(bytes / 4, 64));
    CHECK(MemoryCache::size_class(size) == size);
  }
}

TEST_CASE("buffers outlive the backend, and may be freed by another thread") {
  CpuBuffer<float> kept;
  {
    CpuBackend<float> backend(2);
    CpuBackend<float> moved = std::move(backend);
    kept = moved.allocate<float>(100);
    std::thread([buffer = moved.allocate<float>(100)]() mutable { buffer.data()[99] = 1; }).join();
  }
  kept.data()[99] = 3;
  CHECK(kept.data()[99] == 3);
}

TEST_CASE("the paths of this machine can be chosen") {
  CHECK(cpu_paths().front() == CpuPath::portable);
  for (CpuPath path : cpu_paths()) CHECK(CpuBackend<double>(1, path).path() == path);
  CHECK(CpuBackend<float>(3).threads() == 3);
  CHECK(CpuBackend<float>().path() == cpu_paths().back());
  CHECK_THROWS_AS(CpuBackend<float>(0), Error);
}

TEST_CASE("transfers copy") {
  CpuBackend<float> backend;
  const std::vector<float> host = {1, 2, 3};
  auto a = backend.allocate<float>(3), b = backend.allocate<float>(3);
  backend.upload(host.data(), a.data(), 3);
  backend.copy(a.data(), b.data(), 3);
  std::vector<float> back(3);
  backend.download(b.data(), back.data(), 3);
  backend.synchronize();
  CHECK(back == host);
}

TEST_CASE("repeating a step asks the system for no memory") {
  CpuBackend<float> backend(2);
  using B = CpuBackend<float>;
  const index_t rows = 96, width = 64, words = 700;
  const std::vector<index_t> begin(12, 0), end = {5, 9, 20, 31, 40, 50, 60, 70, 80, 90, 95, 96};
  const std::vector<std::int32_t> ids(at(rows), 17);
  AttentionRule rule;
  rule.mask.begin = flat(begin);
  rule.mask.end = flat(end);
  rule.mask.block_size = 8;
  rule.mask.context_total = 96;
  Tensor<B, float, 2> head(backend, {words, width}), w(backend, {width, width});
  fill(backend, head.view(), 0.1f);
  fill(backend, w.view(), 0.1f);
  index_t before = 0;
  for (int step = 0; step < 6; ++step) {
    if (step == 3) before = backend.system_allocations();
    Tensor<B, float, 2> x(backend, {rows, width}), y(backend, {rows, width}),
        dx(backend, {rows, width}), dw(backend, {width, width}), lse(backend, {rows, 4}),
        delta(backend, {rows, 4});
    Tensor<B, float, 1> scale(backend, {width}), rstd(backend, {rows});
    Tensor<B, std::uint8_t, 1> correct(backend, {rows});
    gather_rows(backend, head.view(), flat(ids), x.view());
    fill(backend, scale.view(), 1.0f);
    fill(backend, dw.view(), 0.0f);
    fill(backend, dx.view(), 0.0f);
    rms_norm(backend, x.view(), scale.view(), 1e-6f, y.view(), rstd.view());
    linear(backend, y.view(), w.view(), x.view());
    const auto q = as_heads(x.view(), 16);
    const KeyValue<float> kv{q, q, q, q}, dkv = kv;
    attention(backend, q, kv, rule, as_heads(y.view(), 16), lse.view());
    linear_cross_entropy(backend, y.view(), head.view(), flat(ids), rstd.view(), correct.view(),
                         dx.view());
    head_dots(backend, as_heads(y.view(), 16), as_heads(dx.view(), 16), delta.view());
    attention_backward(backend, q, kv, rule, lse.view(), delta.view(), as_heads(dx.view(), 16),
                       as_heads(y.view(), 16), dkv);
    linear_backward_weight(backend, dx.view(), y.view(), dw.view());
    linear_backward_input(backend, dx.view(), w.view(), y.view());
    rms_norm_backward(backend, x.view(), scale.view(), rstd.view(), dx.view(), y.view(),
                      scale.view());
    CHECK(sum_of_squares(backend, View<const float, 1>{dw.view().data, {dw.size()}}) >= 0);
  }
  CHECK(backend.system_allocations() == before);
}

}  // namespace backend_test
