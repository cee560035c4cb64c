#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dflash/cpu.hpp"

namespace dflash_benchmark {

using dflash::index_t;

template <class F>
double seconds_of(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The shortest of several runs, after one that is not counted.
template <class F>
double best_seconds(int runs, F&& f) {
  f();
  double best = seconds_of(f);
  for (int i = 1; i < runs; ++i) best = std::min(best, seconds_of(f));
  return best;
}

namespace detail {

#if defined(__x86_64__)
/// Multiply-adds in registers alone; returns their number.
[[gnu::target("avx512f")]] inline double multiply_add_avx512(index_t rounds, float* out) {
  __m512 sum[16];
  for (auto& s : sum) s = _mm512_set1_ps(1);
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1e-3f);
  for (index_t i = 0; i < rounds; ++i)
    for (auto& s : sum) s = _mm512_fmadd_ps(s, a, b);
  for (auto& s : sum) *out += _mm512_cvtss_f32(s);
  return double(rounds) * 16 * 16;
}
[[gnu::target("avx2,fma")]] inline double multiply_add_avx2(index_t rounds, float* out) {
  __m256 sum[12];
  for (auto& s : sum) s = _mm256_set1_ps(1);
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1e-3f);
  for (index_t i = 0; i < rounds; ++i)
    for (auto& s : sum) s = _mm256_fmadd_ps(s, a, b);
  for (auto& s : sum) *out += _mm256_cvtss_f32(s);
  return double(rounds) * 12 * 8;
}
[[gnu::target("avx512f,avx512bf16")]] inline double multiply_add_avx512_bf16(index_t rounds,
                                                                             float* out) {
  __m512 sum[16];
  for (auto& s : sum) s = _mm512_set1_ps(1);
  const auto a = (__m512bh)_mm512_set1_epi32(0x3a003a00),
             b = (__m512bh)_mm512_set1_epi32(0x3f003f00);
  for (index_t i = 0; i < rounds; ++i)
    for (auto& s : sum) s = _mm512_dpbf16_ps(s, a, b);
  for (auto& s : sum) *out += _mm512_cvtss_f32(s);
  return double(rounds) * 16 * 32;
}
/// In AMX's matrix registers: four sums of two factors and two.
inline double multiply_add_amx(index_t rounds, float* out) {
  using Registers = dflash::detail::AmxRegisters;
  const dflash::detail::bfloat16_pair factor[16 * 16] = {};
  float sum[16 * 16];
  Registers::begin();
  Registers::zero<0>(), Registers::zero<1>(), Registers::zero<2>(), Registers::zero<3>();
  Registers::load<4>(factor, 16), Registers::load<5>(factor, 16);
  Registers::load<6>(factor, 16), Registers::load<7>(factor, 16);
  for (index_t i = 0; i < rounds; ++i) {
    Registers::multiply<0, 4, 6>();
    Registers::multiply<1, 4, 7>();
    Registers::multiply<2, 5, 6>();
    Registers::multiply<3, 5, 7>();
  }
  Registers::store<0>(sum, 16);
  Registers::end();
  *out += sum[0];
  return double(rounds) * 4 * (16 * 16 * 32);
}
#endif
inline double multiply_add_portable(index_t rounds, float* out) {
  using V = dflash::detail::Vector<float, 16>::Register;
  V sum[12];
  for (V& s : sum) s = V{1, 1, 1, 1};
  for (index_t i = 0; i < rounds; ++i)
    for (V& s : sum) s = s * 0.999f + 1e-3f;
  for (V& s : sum) *out += s[0];
  return double(rounds) * 12 * 4;
}

}  // namespace detail

/// Multiply-adds a second that the backend's threads reach on its path when nothing leaves the
/// registers, counted as two operations: of floats, or of bf16 pairs where the path has those.
inline double peak_flops(dflash::CpuBackend<float>& backend, bool bf16 = false) {
  const index_t rounds = 1 << 20;
  std::vector<float> out(std::size_t(backend.threads()) * 16);
  double each = 0;
  const double seconds = best_seconds(5, [&] {
    backend.parallel_for(backend.threads(), index_t(1) << 40, [&](index_t i, int) {
      float* const to = &out[std::size_t(i) * 16];
#if defined(__x86_64__)
      if (bf16 && backend.path() == dflash::CpuPath::amx)
        each = detail::multiply_add_amx(rounds / 8, to);
      else if (bf16 && backend.path() >= dflash::CpuPath::avx512 &&
               __builtin_cpu_supports("avx512bf16"))
        each = detail::multiply_add_avx512_bf16(rounds, to);
      else if (backend.path() >= dflash::CpuPath::avx512)
        each = detail::multiply_add_avx512(rounds, to);
      else if (backend.path() == dflash::CpuPath::avx2)
        each = detail::multiply_add_avx2(rounds, to);
      else
#endif
        each = detail::multiply_add_portable(rounds, to);
    });
  });
  return 2 * each * backend.threads() / seconds;
}

/// Bytes a second that the backend's threads move between memory and registers in x = x + a y over
/// arrays far larger than the caches: two streams in, one out.
inline double peak_bandwidth(dflash::CpuBackend<float>& backend) {
  const index_t n = index_t(1) << 25;
  auto x = backend.allocate<float>(n), y = backend.allocate<float>(n);
  fill(backend, dflash::View<float, 1>{x.data(), {n}}, 1);
  fill(backend, dflash::View<float, 1>{y.data(), {n}}, 1);
  const double seconds = best_seconds(5, [&] {
    backend.for_parts(n, 1, [to = x.data(), from = y.data()](dflash::Range part) {
      for (index_t i = part.begin; i < part.end; ++i) to[i] += 0.5f * from[i];
    });
  });
  return 3.0 * sizeof(float) * double(n) / seconds;
}

/// Reads from memory with all threads of a backend, each a part of its own.
class ReadBandwidth {
 public:
  explicit ReadBandwidth(dflash::CpuBackend<float>& backend)
      : backend_(&backend),
        x_(backend.allocate<float>(size)),
        sums_(std::size_t(backend.threads())) {
    fill(backend, dflash::View<float, 1>{x_.data(), {size}}, 1);
  }

  /// Bytes a second, at the moment.
  double operator()() {
    constexpr int rounds = 2;
    const index_t parts = backend_->threads();
    const double seconds = seconds_of([&] {
      for (int round = 0; round < rounds; ++round)
        backend_->parallel_for(parts, size, [&](index_t part, int) {
          float lane[64] = {};
          for (index_t i = size * part / parts / 64 * 64; i < size * (part + 1) / parts / 64 * 64;
               i += 64)
            for (int l = 0; l < 64; ++l) lane[l] += x_.data()[i + l];
          for (const float l : lane) sums_[std::size_t(part)] += l;
        });
    });
    return rounds * double(sizeof(float)) * double(size) / seconds;
  }

 private:
  static constexpr index_t size = 1 << 27;

  dflash::CpuBackend<float>* backend_;
  dflash::CpuBuffer<float> x_;
  std::vector<float> sums_;
};

}  // namespace dflash_benchmark
