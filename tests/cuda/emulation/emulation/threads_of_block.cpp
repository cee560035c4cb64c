#include "emulation/threads_of_block.hpp"

#include <cstring>

#include "emulation/types.hpp"

__thread cuda_emulation::Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulation {

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

}  // namespace cuda_emulation
