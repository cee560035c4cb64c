#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// A fixed crew for loops whose iterations do not depend on each other. One thread uses it at a
/// time.
class ThreadPool {
 public:
  /// `threads` includes the caller's; one makes no thread at all.
  explicit ThreadPool(int threads) {
    expects(threads >= 1, "ThreadPool: threads must be at least 1");
    try {
      for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { stop(); }

  int threads() const { return int(workers_.size()) + 1; }

  /// f(i, thread) for i in [0, n), each once, in no order; thread in [0, threads()) tells who runs
  /// it. The first exception is thrown here once all threads have stopped; the rest of the
  /// iterations is then skipped. f must not use the pool again.
  template <class F>
  void parallel_for(index_t n, F&& f) {
    if (n <= 1 || workers_.empty()) {
      for (index_t i = 0; i < n; ++i) f(i, 0);
      return;
    }
    call_ = [](void* context, index_t i, int thread) {
      (*static_cast<std::remove_reference_t<F>*>(context))(i, thread);
    };
    context_ = const_cast<void*>(static_cast<const void*>(&f));
    n_ = n;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(int(workers_.size()), std::memory_order_relaxed);
    announce();
    run(0);
    for (int busy = busy_.load(std::memory_order_acquire); busy != 0;
         busy = busy_.load(std::memory_order_acquire))
      wait(busy_, busy);
    if (error_) {
      failed_.clear();
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }

 private:
  // Most loops are shorter than the way into the kernel and back, so look for a while before
  // sleeping.
  static void wait(std::atomic<int>& value, int old) {
    for (int i = 0; i < 2000; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    value.wait(old, std::memory_order_acquire);
  }

  void announce() {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void run(int thread) noexcept {
    try {
      for (index_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n_;)
        call_(context_, i, thread);
    } catch (...) {
      if (!failed_.test_and_set()) error_ = std::current_exception();
      next_.store(n_, std::memory_order_relaxed);
    }
  }

  void work(int thread) {
    for (int seen = 0;;) {
      wait(round_, seen);
      seen = round_.load(std::memory_order_acquire);
      if (stopping_) return;
      run(thread);
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }

  void stop() noexcept {
    stopping_ = true;
    announce();
    for (std::thread& worker : workers_) worker.join();
  }

  std::vector<std::thread> workers_;
  void (*call_)(void*, index_t, int) = nullptr;
  void* context_ = nullptr;
  index_t n_ = 0;
  std::atomic<index_t> next_ = 0;
  std::atomic<int> busy_ = 0, round_ = 0;
  std::atomic_flag failed_;
  std::exception_ptr error_;
  bool stopping_ = false;
};

}  // namespace dflash
