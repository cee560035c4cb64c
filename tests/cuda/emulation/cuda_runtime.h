#pragma once

// The emulator's counterpart of CUDA's header: found first, it lets a host compiler compile kernels
// as they are. README.md says what is emulated.

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "emulation/block.hpp"
#include "emulation/runtime.hpp"
#include "emulation/types.hpp"

// Functions of a kernel.

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_emulation::sync_threads(file, line);
}
inline void __syncwarp(unsigned mask = ~0u, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  cuda_emulation::sync_warp(mask, file, line);
}

namespace cuda_emulation {
/// The value of the lane that `source` computes from this lane's place in its part of the warp; its
/// own where that lies outside the part.
template <class T, class Source>
T shuffle(unsigned mask, T value, int width, const char* what, Source source) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    throw Misuse("a shuffle's width is a power of two up to 32");
  const Gathered all(mask, &value, sizeof value, what);
  const int me = int(lane()), first = me / width * width, from = source(me - first);
  return from < 0 || from >= width ? value : all.from<T>(unsigned(first + from));
}
}  // namespace cuda_emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  return cuda_emulation::shuffle(mask, value, width, "__shfl_sync",
                                 [=](int) { return from & (width - 1); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return cuda_emulation::shuffle(mask, value, width, "__shfl_xor_sync",
                                 [=](int at) { return at ^ bits; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int step, int width = 32) {
  return cuda_emulation::shuffle(mask, value, width, "__shfl_down_sync",
                                 [=](int at) { return at + step; });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int step, int width = 32) {
  return cuda_emulation::shuffle(mask, value, width, "__shfl_up_sync",
                                 [=](int at) { return at - step; });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const bool mine = predicate != 0;
  const cuda_emulation::Gathered all(mask, &mine, sizeof mine, "__ballot_sync");
  unsigned votes = 0;
  for (unsigned l = 0; l < 32; ++l)
    if ((mask >> l & 1) != 0 && all.from<bool>(l)) votes |= 1u << l;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
inline int __reduce_min_sync(unsigned mask, int x) {
  const cuda_emulation::Gathered all(mask, &x, sizeof x, "__reduce_min_sync");
  for (unsigned l = 0; l < 32; ++l)
    if ((mask >> l & 1) != 0) x = std::min(x, all.from<int>(l));
  return x;
}
inline int __reduce_max_sync(unsigned mask, int x) {
  const cuda_emulation::Gathered all(mask, &x, sizeof x, "__reduce_max_sync");
  for (unsigned l = 0; l < 32; ++l)
    if ((mask >> l & 1) != 0) x = std::max(x, all.from<int>(l));
  return x;
}

template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*at).fetch_add(value, std::memory_order_relaxed);
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  std::atomic_ref<T> there(*at);
  T old = there.load(std::memory_order_relaxed);
  while (old < value && !there.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
  return old;
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  std::atomic_ref<T>(*at).compare_exchange_strong(expected, value, std::memory_order_relaxed);
  return expected;
}

template <class T>
T __ldg(const T* at) {
  return *at;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
using std::max;
using std::min;
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float rsqrtf(float x) { return float(1 / std::sqrt(double(x))); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }

/// Puts the kernel in the stream's queue; its arguments are copied.
template <class... Parameter, class... Argument>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameter...),
                               Argument&&... arguments) {
  std::tuple<Parameter...> copies(static_cast<Parameter>(arguments)...);
  return cuda_emulation::launch(
      *config, reinterpret_cast<const void*>(kernel),
      [kernel, copies = std::move(copies)] { std::apply(kernel, copies); });
}
