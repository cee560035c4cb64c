#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/support.hpp"
#include "dflash/cpu.hpp"
#include "dflash/cuda.cuh"

namespace dflash_test {

using dflash::bfloat16;
using dflash::CpuBackend;
using dflash::CudaBackend;

/// Numbers that both backends hold exactly: random, rounded to T.
template <class T>
std::vector<float> numbers(index_t n, std::uint64_t key, double scale = 1) {
  auto x = random<float>(n, key);
  for (float& v : x) v = float(T(v * float(scale)));
  return x;
}

/// Device memory with a copy of host numbers, in T.
template <class T>
class OnDevice {
 public:
  template <class B, class U>
  OnDevice(B& backend, const std::vector<U>& host) : memory_(backend, {index_t(host.size())}) {
    std::vector<T> narrow;
    for (const U& v : host) narrow.push_back(T(v));
    backend.upload(narrow.data(), data(), index_t(narrow.size()));
  }
  T* data() { return memory_.data; }
  View<T, 1> flat() { return {data(), {size()}}; }
  View<T, 2> matrix(index_t rows, index_t columns) { return {data(), {rows, columns}}; }
  View<T, 3> heads(index_t rows, index_t heads, index_t dim) {
    return {data(), {rows, heads, dim}};
  }
  index_t size() const { return memory_.size; }

  template <class B>
  std::vector<T> stored(B& backend) {
    std::vector<T> host(at(size()));
    backend.download(data(), host.data(), size());
    return host;
  }
  template <class B>
  std::vector<float> host(B& backend) {
    std::vector<float> wide;
    for (const T& v : stored(backend)) wide.push_back(float(v));
    return wide;
  }

 private:
  /// Begins in the middle of an allocation if `shift` asks for addresses that vectors cannot use.
  struct Memory {
    template <class B>
    Memory(B& backend, const index_t (&shape)[1])
        : buffer(backend.template allocate<T>(shape[0])), data(buffer.data()), size(shape[0]) {}
    dflash::CachedBuffer<T> buffer;
    T* data;
    index_t size;
  } memory_;
};

/// Both backends.
template <class T>
struct Pair {
  CpuBackend<float> cpu;
  CudaBackend<T> cuda;
};

/// The largest error, relative to the largest number expected (or 1).
inline double error(const std::vector<float>& actual, const std::vector<float>& expected) {
  double top = 1;
  for (float v : expected) top = std::max(top, double(std::abs(v)));
  return difference(actual, expected) / top;
}

/// What one rounding to T, and the other order of sums, may change.
template <class T>
constexpr double tolerance = std::is_same_v<T, float> ? 4e-6 : 6e-3;

}  // namespace dflash_test

#define CHECK_NEAR(actual, expected) CHECK(error(actual, expected) < tolerance<T>)
