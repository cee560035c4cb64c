#include "emulation/block.hpp"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulation/sanitizers.hpp"
#include "emulation/threads_of_block.hpp"

namespace cuda_emulation {

namespace {

std::uint64_t first_seed() {
  const char* const text = std::getenv("DFLASH_CUDA_SEED");
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : 1;
}
std::uint64_t& seed() {
  static thread_local std::uint64_t value = first_seed();
  return value;
}

thread_local std::unique_ptr<Block> block;

Block& running() {
  if (block == nullptr) throw Misuse("device code was called outside a kernel");
  return *block;
}

/// Watched: the memory is the kernel's.
void land(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
    if (copy.zeros > 0) std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.zeros);
  }
}

/// Threads that stand still in a kernel can never be ended: they are kept.
void abandon(std::unique_ptr<Block> stuck) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<std::unique_ptr<Block>>;
  std::lock_guard lock(mutex);
  kept->push_back(std::move(stuck));
}

void check(const Grid& grid) {
  const std::uint64_t threads =
      std::uint64_t(grid.threads.x) * grid.threads.y * std::uint64_t(grid.threads.z);
  if (threads == 0 || threads > most_threads)
    throw Misuse("a block of " + std::to_string(threads) + " threads: the device has 1 to 1024");
  if (grid.blocks.y > 65535 || grid.blocks.z > 65535 || grid.blocks.x > 0x7fffffffu)
    throw Misuse("a grid of " + text(grid.blocks) + " blocks is more than the device allows");
}

}  // namespace

void set_seed(std::uint64_t value) { seed() = value; }

void poison(void* at, std::size_t bytes) { std::memset(at, 0xff, bytes); }

void run_grid(const Grid& grid, const std::function<void()>& kernel) {
  check(grid);
  if (block == nullptr) block = std::make_unique<Block>();
  if (block->busy()) throw Misuse("a kernel inside a kernel");
  block->seed(seed());
  std::vector<std::uint64_t> order(std::uint64_t(grid.blocks.x) * grid.blocks.y * grid.blocks.z);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  Numbers(seed()).shuffle(order);
  Launch launch;
  release(&launch.begin);
  try {
    for (const std::uint64_t i : order)
      block->run(grid,
                 {unsigned(i % grid.blocks.x), unsigned(i / grid.blocks.x % grid.blocks.y),
                  unsigned(i / grid.blocks.x / grid.blocks.y)},
                 kernel, launch);
  } catch (...) {
    acquire(&launch.end);
    abandon(std::move(block));
    throw;
  }
  acquire(&launch.end);
}

void* shared_memory() { return running().shared(); }
unsigned lane() { return running().thread().number % warp_size; }

void sync_threads(const char* file, int line) {
  const Unwatched unwatched;
  running().sync_threads(file, line);
}
void sync_warp(unsigned mask, const char*, int) {
  const Unwatched unwatched;
  running().sync_warp(mask, "__syncwarp");
}

void yield_thread(const char* what) {
  const Unwatched unwatched;
  running().yield(what);
}

Gathered::Gathered(unsigned mask, const void* mine, std::size_t bytes, const char* what) {
  const Unwatched unwatched;
  exchange_ = running().meet(mask, mine, bytes, what);
}
Gathered::~Gathered() {
  const Unwatched unwatched;
  running().leave(static_cast<Exchange*>(exchange_));
}
unsigned Gathered::mask() const {
  const Unwatched unwatched;
  return static_cast<Exchange*>(exchange_)->mask;
}
void Gathered::read(unsigned lane, void* to, std::size_t bytes) const {
  const Unwatched unwatched;
  const Exchange& e = *static_cast<Exchange*>(exchange_);
  if (lane >= warp_size || (e.mask >> lane & 1) == 0)
    throw Misuse(std::string(e.what) + ": reads a lane that is not in the mask");
  std::memcpy(to, e.given[lane].data(), bytes);
}

void copy_async(void* to, const void* from, std::size_t bytes, std::size_t zeros) {
  if (reinterpret_cast<std::uintptr_t>(to) % (bytes + zeros) != 0 ||
      (bytes > 0 && reinterpret_cast<std::uintptr_t>(from) % (bytes + zeros) != 0))
    throw Misuse("an asynchronous copy of " + std::to_string(bytes + zeros) +
                 " bytes is not aligned to as many");
  poison(to, bytes + zeros);
  const Unwatched unwatched;
  running().thread().open_copies.push_back({to, from, bytes, zeros});
}
void commit_copies() {
  const Unwatched unwatched;
  Thread& self = running().thread();
  self.groups.push_back(std::move(self.open_copies));
  self.open_copies.clear();
}
void wait_copies(std::size_t pending) {
  Thread& self = running().thread();
  while (self.groups.size() > pending) {
    land(self.groups.front());
    const Unwatched unwatched;
    self.groups.pop_front();
  }
}

}  // namespace cuda_emulation
