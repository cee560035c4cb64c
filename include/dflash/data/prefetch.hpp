#pragma once

#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// Makes the items of a sequence ahead of their use, on a thread of its own: make(first), ...,
/// make(end - 1), in that order. An item is made while the one before it is used, so that there are
/// never more than two. What make uses outlives this and is safe to use from two threads, as
/// datasets and `shard` are.
template <class Make>
class Prefetch {
 public:
  using Item = std::invoke_result_t<Make&, index_t>;

  Prefetch(index_t first, index_t end, Make make)
      : make_(std::move(make)), end_(end), next_(first), worker_([this, first] { work(first); }) {}
  Prefetch(const Prefetch&) = delete;
  Prefetch& operator=(const Prefetch&) = delete;
  ~Prefetch() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  /// The next item, once it is made. Throws what make threw for it, and nothing comes after that.
  Item next() {
    std::unique_lock lock(mutex_);
    expects(next_ < end_, "Prefetch: all items were taken");
    changed_.wait(lock, [&] { return item_.has_value() || error_ != nullptr; });
    if (!item_) std::rethrow_exception(error_);
    Item item = std::move(*item_);
    item_.reset();
    ++next_;
    lock.unlock();
    changed_.notify_all();
    return item;
  }

 private:
  void work(index_t i) noexcept {
    for (; i < end_; ++i) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || !item_; });
      if (stopping_) return;
      lock.unlock();
      std::optional<Item> made;
      std::exception_ptr error;
      try {
        made.emplace(make_(i));
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      item_ = std::move(made);
      error_ = error;
      lock.unlock();
      changed_.notify_all();
      if (error) return;
    }
  }

  Make make_;
  index_t end_;
  std::mutex mutex_;
  std::condition_variable changed_;
  index_t next_;  // that next() gives
  std::optional<Item> item_;
  std::exception_ptr error_;
  bool stopping_ = false;
  std::thread worker_;
};

}  // namespace dflash
