#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "emulation/block.hpp"
#include "emulation/fiber.hpp"
#include "emulation/sanitizers.hpp"

namespace cuda_emulation {

constexpr unsigned warp_size = 32, most_threads = 1024;

/// splitmix64.
class Numbers {
 public:
  explicit Numbers(std::uint64_t s) : state_(s) {}
  std::uint64_t operator()() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  template <class T>
  void shuffle(std::vector<T>& x) {
    for (std::size_t i = x.size(); i > 1; --i) std::swap(x[i - 1], x[(*this)() % i]);
  }

 private:
  std::uint64_t state_;
};

/// One meeting of lanes.
struct Exchange {
  unsigned mask = 0, arrived = 0, unread = 0;
  const char* what = nullptr;
  std::array<std::array<std::byte, Gathered::most_bytes>, warp_size> given;
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes, zeros;
};

enum class State { ready, at_barrier, in_warp, done };

struct Thread {
  Fiber fiber;
  Index3 index = {};
  unsigned number = 0;  // in its block
  State state = State::done;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> groups;
};

inline std::string text(Index3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

/// Fresh to the thread sanitizer, poisoned, and with a guard behind the `bytes`.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes) : bytes_(bytes) {
    const Unwatched unwatched;
    if (posix_memalign(&memory_, alignment, guard_from() + guard_bytes + sync_bytes) != 0)
      throw std::bad_alloc();
    poison(memory_, guard_from() + guard_bytes);
    forbid(bytes_ + data(), guard_from() - bytes_ + guard_bytes);
  }
  ~SharedMemory() {
    const Unwatched unwatched;
    permit(memory_, guard_from() + guard_bytes);
    std::free(memory_);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  char* data() const { return static_cast<char*>(memory_); }
  /// What release and acquire of the block's barrier, or of a warp's, name.
  void* barrier(unsigned warp_or_block) const {
    return data() + guard_from() + guard_bytes + 8 * warp_or_block;
  }
  bool guard_is_whole() const {
    permit(bytes_ + data(), guard_from() - bytes_ + guard_bytes);
    return std::all_of(data() + bytes_, data() + guard_from() + guard_bytes,
                       [](char c) { return c == char(0xff); });
  }

 private:
  static constexpr std::size_t alignment = 128, guard_bytes = 128;
  static constexpr std::size_t sync_bytes = 8 * (most_threads / warp_size + 1);
  std::size_t guard_from() const { return (bytes_ + 15) / 16 * 16; }
  std::size_t bytes_;
  void* memory_ = nullptr;
};

/// What threads acquire before a kernel, and release after it.
struct Launch {
  char begin = 0, end = 0;
};

/// The threads of the block that runs, and who waits for what.
class Block {
 public:
  ~Block() {
    const Unwatched unwatched;
    threads_.clear();
  }
  void seed(std::uint64_t value) { numbers_ = Numbers(value); }
  void run(const Grid& grid, Index3 index, const std::function<void()>& kernel, Launch& launch);
  bool busy() const { return running_ != nullptr; }
  Thread& thread() { return *running_; }
  const std::function<void()>& kernel() const { return *kernel_; }
  Launch& launch() const { return *launch_; }
  void* shared() const { return shared_->data(); }
  void fail(std::exception_ptr error) {
    if (!error_) error_ = std::move(error);
  }

  void sync_threads(const char* file, int line);
  void sync_warp(unsigned mask, const char* what);
  void yield(const char* what);
  Exchange* meet(unsigned mask, const void* mine, std::size_t bytes, const char* what);
  void leave(Exchange* exchange);

 private:
  static void run_thread(void* block);
  void place_threads(const Grid& grid);
  void resume_all();
  void end_of_barrier();
  void wait(State state);
  [[noreturn]] void stuck() const;
  unsigned present(unsigned warp) const {
    const unsigned lanes = std::min(count_ - warp * warp_size, warp_size);
    return lanes == warp_size ? ~0u : (1u << lanes) - 1;
  }

  Numbers numbers_{0};
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Thread*> ready_;
  std::array<std::vector<std::unique_ptr<Exchange>>, most_threads / warp_size> exchanges_;
  std::unique_ptr<SharedMemory> shared_;
  const std::function<void()>* kernel_ = nullptr;
  Launch* launch_ = nullptr;
  Thread* running_ = nullptr;
  std::exception_ptr error_;
  unsigned count_ = 0, live_ = 0, at_barrier_ = 0;
  std::size_t yields_ = 0;  // since anybody got on
  const char* barrier_file_ = nullptr;
  int barrier_line_ = 0;
};

}  // namespace cuda_emulation
