#include "emulation/block.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulation/fiber.hpp"
#include "emulation/sanitizers.hpp"
#include "emulation/types.hpp"

__thread cuda_emulation::Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulation {

namespace {

constexpr unsigned warp_size = 32, most_threads = 1024;
constexpr std::size_t alignment = 128, guard_bytes = 128;

std::uint64_t first_seed() {
  const char* const text = std::getenv("DFLASH_CUDA_SEED");
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : 1;
}
std::uint64_t& seed() {
  static thread_local std::uint64_t value = first_seed();
  return value;
}

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

std::string text(Index3 i) {
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

thread_local std::unique_ptr<Block> block;

Block& running() {
  if (block == nullptr) throw Misuse("device code was called outside a kernel");
  return *block;
}

void Block::run_thread(void* at) {
  Block& b = *static_cast<Block*>(at);
  acquire(&b.launch().begin);
  try {
    b.kernel()();
  } catch (...) {
    const Unwatched unwatched;
    b.fail(std::current_exception());
  }
  const Unwatched unwatched;
  release(&b.launch().end);
  b.running_->state = State::done;
  --b.live_;
}

void Block::place_threads(const Grid& grid) {
  const Index3 size = grid.threads;
  count_ = size.x * size.y * size.z;
  while (threads_.size() < count_) threads_.push_back(std::make_unique<Thread>());
  numbers_.shuffle(threads_);
  ready_.clear();
  for (unsigned n = 0; n < count_; ++n) {
    Thread& t = *threads_[n];
    t.number = n;
    t.index = {n % size.x, n / size.x % size.y, n / size.x / size.y};
    t.state = State::ready;
    t.open_copies.clear();
    t.groups.clear();
    t.fiber.begin(&run_thread, this);
    ready_.push_back(&t);
  }
  for (auto& warp : exchanges_)
    for (auto& exchange : warp) *exchange = Exchange{};
}

void Block::run(const Grid& grid, Index3 index, const std::function<void()>& kernel,
                Launch& launch) {
  const Unwatched unwatched;
  kernel_ = &kernel;
  launch_ = &launch;
  shared_ = std::make_unique<SharedMemory>(grid.shared_bytes);
  place_threads(grid);
  blockIdx = index;
  blockDim = grid.threads;
  gridDim = grid.blocks;
  live_ = count_;
  at_barrier_ = 0;
  numbers_.shuffle(ready_);
  resume_all();
  if (!shared_->guard_is_whole())
    throw Misuse("block " + text(index) + " wrote past its shared memory");
}

void Block::resume_all() {
  while (live_ > 0) {
    if (ready_.empty()) {
      if (at_barrier_ != count_) stuck();
      end_of_barrier();
    }
    running_ = ready_.back();
    ready_.pop_back();
    threadIdx = running_->index;
    running_->fiber.resume();
    running_ = nullptr;
    if (error_) std::rethrow_exception(error_);
  }
}

void Block::end_of_barrier() {
  yields_ = 0;
  at_barrier_ = 0;
  for (unsigned n = 0; n < count_; ++n) {
    threads_[n]->state = State::ready;
    ready_.push_back(threads_[n].get());
  }
  numbers_.shuffle(ready_);
}

void Block::stuck() const {
  std::string why = "the block is stuck: of " + std::to_string(count_) + " threads " +
                    std::to_string(at_barrier_) + " wait at a barrier, " +
                    std::to_string(count_ - live_) + " have returned";
  for (const auto& warp : exchanges_)
    for (const auto& e : warp)
      if (e->what != nullptr && e->arrived != e->mask)
        why += std::string("; ") + e->what + " waits for lanes that do not come";
  throw Misuse(why);
}

void Block::wait(State state) {
  Thread& self = *running_;
  self.state = state;
  release(&launch_->end);  // in case it stands here for ever
  self.fiber.pause();
}

void Block::sync_threads(const char* file, int line) {
  if (at_barrier_ == 0) {
    barrier_file_ = file;
    barrier_line_ = line;
  } else if (line != barrier_line_ || std::strcmp(file, barrier_file_) != 0) {
    throw Misuse("threads of one block wait at two barriers: " + std::string(file) + ":" +
                 std::to_string(line) + " and " + barrier_file_ + ":" +
                 std::to_string(barrier_line_));
  }
  ++at_barrier_;
  void* const at = shared_->barrier(most_threads / warp_size);
  release(at);
  wait(State::at_barrier);
  acquire(at);
}

void Block::sync_warp(unsigned mask, const char* what) {
  void* const at = shared_->barrier(running_->number / warp_size);
  release(at);
  leave(meet(mask, nullptr, 0, what));
  acquire(at);
}

void Block::yield(const char* what) {
  if (++yields_ > std::size_t(1000) * count_)
    throw Misuse(std::string("the block is stuck: ") + what + " waits for what does not come");
  ready_.insert(ready_.begin(), running_);
  running_->fiber.pause();
}

Exchange* Block::meet(unsigned mask, const void* mine, std::size_t bytes, const char* what) {
  Thread& self = *running_;
  const unsigned warp = self.number / warp_size, me = self.number % warp_size;
  if ((mask >> me & 1) == 0)
    throw Misuse(std::string(what) + ": the calling lane is not in the mask");
  if ((mask & ~present(warp)) != 0)
    throw Misuse(std::string(what) + ": the mask names lanes that the block does not have");
  auto& known = exchanges_[warp];
  Exchange* here = nullptr;
  for (auto& e : known)
    if (e->what != nullptr && e->mask == mask && e->arrived != mask) here = e.get();
  if (here == nullptr) {
    for (auto& e : known)
      if (e->what == nullptr) here = e.get();
    if (here == nullptr) here = known.emplace_back(std::make_unique<Exchange>()).get();
    here->mask = here->unread = mask;
    here->arrived = 0;
    here->what = what;
  }
  if (std::strcmp(here->what, what) != 0)
    throw Misuse("lanes of one warp meet in " + std::string(here->what) + " and in " + what);
  if (bytes > 0) std::memcpy(here->given[me].data(), mine, bytes);
  here->arrived |= 1u << me;
  yields_ = 0;
  if (here->arrived != mask) {
    wait(State::in_warp);
  } else {
    for (unsigned l = 0; l < warp_size; ++l)
      if (l != me && (mask >> l & 1) != 0) {
        Thread& other = *threads_[warp * warp_size + l];
        other.state = State::ready;
        ready_.push_back(&other);
        std::swap(ready_.back(), ready_[numbers_() % ready_.size()]);
      }
  }
  return here;
}

void Block::leave(Exchange* exchange) {
  exchange->unread &= ~(1u << running_->number % warp_size);
  if (exchange->unread == 0) exchange->what = nullptr;
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
