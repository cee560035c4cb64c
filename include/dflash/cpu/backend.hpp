#pragma once

#include <algorithm>
#include <concepts>
#include <memory>
#include <type_traits>

#include "dflash/core/backend.hpp"
#include "dflash/core/error.hpp"
#include "dflash/cpu/memory.hpp"

namespace dflash {

/// Host memory and the processor's own vector units; nothing is asynchronous.
template <std::floating_point T = float>
class CpuBackend {
 public:
  using value_type = T;
  using accumulator_type = T;
  template <class U>
  using Buffer = CpuBuffer<U>;

  /// A weight matrix in the order the product reads it. See freeze.
  struct FrozenMatrix {
    Buffer<T> data;
    index_t rows = 0, columns = 0;
  };

  /// Computes on `threads` threads, the caller's included. Results do not depend on their number.
  explicit CpuBackend(int threads = 1) : threads_(threads) {
    expects(threads >= 1, "CpuBackend: threads must be at least 1");
  }

  int threads() const { return threads_; }

  /// Uninitialised memory; it may outlive the backend.
  template <class U>
  Buffer<U> allocate(index_t n) {
    static_assert(std::is_trivially_copyable_v<U>);
    expects(n >= 0, "CpuBackend: a negative number of elements");
    return Buffer<U>(cache_, n);
  }
  template <class U>
  void upload(const U* host, U* here, index_t n) {
    std::copy_n(host, n, here);
  }
  template <class U>
  void download(const U* here, U* host, index_t n) {
    std::copy_n(here, n, host);
  }
  template <class U>
  void copy(const U* from, U* to, index_t n) {
    std::copy_n(from, n, to);
  }
  void synchronize() {}

  /// How often memory had to come from the system: constant once training is under way.
  index_t system_allocations() const { return cache_->system_allocations(); }

 private:
  int threads_;
  std::shared_ptr<MemoryCache> cache_ = std::make_shared<MemoryCache>();
};

static_assert(Backend<CpuBackend<float>>);
static_assert(Backend<CpuBackend<double>>);

}  // namespace dflash
