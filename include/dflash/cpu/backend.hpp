#pragma once

#include <algorithm>
#include <concepts>
#include <memory>
#include <type_traits>

#include "dflash/core/backend.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/thread_pool.hpp"
#include "dflash/cpu/gemm_kernel.hpp"
#include "dflash/cpu/memory.hpp"
#include "dflash/cpu/path.hpp"

namespace dflash {

/// Host memory and the processor's own vector units; nothing is asynchronous.
template <std::floating_point T = float>
class CpuBackend {
 public:
  using value_type = T;
  using accumulator_type = T;
  static constexpr bool host_memory = true;  // communicators of host memory may move it
  static constexpr bool keeps_bfloat16_rows = true;
  template <class U>
  using Buffer = CpuBuffer<U>;

  /// A weight matrix in the order in which products on its path read it. See freeze.
  struct FrozenMatrix {
    Buffer<T> data;
    Buffer<detail::bfloat16_pair> pairs;  // or these
    index_t rows = 0, columns = 0;
    CpuPath path = CpuPath::portable;
    CpuPrecision precision = CpuPrecision::fp32;
    Buffer<detail::int8_quad> quads = {};  // or these, times
    Buffer<float> scales = {};             // that of each row
  };

  /// Computes on `threads` threads, the caller's included: results do not depend on their number.
  /// `precision` is that of products with weights; other than fp32 it is for float alone.
  /// Throws if the machine cannot run `path`.
  explicit CpuBackend(int threads = 1, CpuPath path = cpu_paths().back(),
                      CpuPrecision precision = CpuPrecision::fp32)
      : path_(path), precision_(precision), kernel_(detail::gemm_kernel<T>(path)) {
    const auto paths = cpu_paths();
    expects(std::find(paths.begin(), paths.end(), path) != paths.end(),
            "CpuBackend: this machine cannot run the path asked for");
    expects(precision == CpuPrecision::fp32 || std::is_same_v<T, float>,
            "CpuBackend: products of bfloat16 are for float");
    pool_ = std::make_unique<ThreadPool>(threads);
  }
  CpuBackend(int threads, CpuPrecision precision)
      : CpuBackend(threads, cpu_paths().back(), precision) {}

  int threads() const { return pool_->threads(); }
  CpuPath path() const { return path_; }
  CpuPrecision precision() const { return precision_; }
  /// Whether products of linear layers round what they read to bfloat16 (bf16x3 keeps the rest).
  bool products_round() const { return precision_ == CpuPrecision::bf16; }
  const detail::GemmKernel<T>& gemm_kernel() const { return kernel_; }

  /// f(i, thread) for i in [0, n), in no order; on the caller alone if `work`, the multiplications
  /// of the whole loop, is not worth waking others.
  template <class F>
  void parallel_for(index_t n, index_t work, F&& f) {
    if (work < smallest_shared_work) {
      for (index_t i = 0; i < n; ++i) f(i, 0);
    } else {
      pool_->parallel_for(n, f);
    }
  }

  /// f(part) for consecutive parts of [0, n), where one index costs `each` multiplications. Parts
  /// are long, so that the processor foresees what comes next in memory.
  template <class F>
  void for_parts(index_t n, index_t each, F&& f) {
    const index_t size = std::max<index_t>(
        {part_work / std::max<index_t>(each, 1), n / (8 * threads()), index_t(1)});
    parallel_for((n + size - 1) / size, n * each, [&](index_t i, int) {
      f(Range{i * size, std::min(n, (i + 1) * size)});
    });
  }

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
  MemoryCache& memory() const { return *cache_; }

 private:
  static constexpr index_t smallest_shared_work = 1 << 19, part_work = 1 << 15;

  CpuPath path_;
  CpuPrecision precision_;
  detail::GemmKernel<T> kernel_;
  std::shared_ptr<MemoryCache> cache_ = std::make_shared<MemoryCache>(large_page_memory());
  std::unique_ptr<ThreadPool> pool_;
};

static_assert(Backend<CpuBackend<float>>);
static_assert(Backend<CpuBackend<double>>);

}  // namespace dflash
