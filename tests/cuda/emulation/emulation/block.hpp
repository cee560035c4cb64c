#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>

namespace cuda_emulation {

/// What a kernel or a caller did that the device forbids.
class Misuse : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

struct Index3 {
  unsigned x, y, z;
};

/// How many threads and blocks, and the bytes of shared memory of each block.
struct Grid {
  Index3 blocks, threads;
  std::size_t shared_bytes = 0;
};

/// Runs `kernel` once for every thread of the grid, in an order that the seed shuffles. Throws
/// Misuse; the device memory is then undefined.
void run_grid(const Grid& grid, const std::function<void()>& kernel);

/// What the next grids' orders depend on: from the environment's DFLASH_CUDA_SEED at first, or 1.
void set_seed(std::uint64_t seed);

// What the thread that runs asks of the device.

/// The block's shared memory.
void* shared_memory();
/// Waits for every thread of the block.
void sync_threads(const char* file, int line);
/// Waits for the lanes of `mask`, this one among them.
void sync_warp(unsigned mask, const char* file, int line);

/// What the lanes of a mask gave, for as long as this lives.
class Gathered {
 public:
  static constexpr std::size_t most_bytes = 32;
  /// Gives `bytes` from `mine` and waits until every lane of `mask` has given its own.
  Gathered(unsigned mask, const void* mine, std::size_t bytes, const char* what);
  ~Gathered();
  Gathered(const Gathered&) = delete;
  Gathered& operator=(const Gathered&) = delete;
  /// What `lane` gave. Misuse if it is not of the mask.
  template <class T>
  T from(unsigned lane) const {
    static_assert(sizeof(T) <= most_bytes);
    T value;
    read(lane, &value, sizeof(T));
    return value;
  }
  unsigned mask() const;

 private:
  void read(unsigned lane, void* to, std::size_t bytes) const;
  void* exchange_;
};

/// The running thread's place in its warp.
unsigned lane();

/// Lets the others run first, for a thread that waits for what one of them does. Misuse if it waits
/// for ever.
void yield_thread(const char* what);

/// Begins a copy that lands when it is waited for; until then `to` holds poison.
void copy_async(void* to, const void* from, std::size_t bytes, std::size_t zeros);
void commit_copies();
void wait_copies(std::size_t pending);

/// Fills memory with a pattern that is no number in any type.
void poison(void* at, std::size_t bytes);

}  // namespace cuda_emulation
