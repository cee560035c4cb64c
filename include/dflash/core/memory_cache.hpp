#pragma once

#include <bit>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// Where memory comes from: blocks aligned to at least 64 bytes. `allocate` returns null if there
/// is no more, and throws if something else is wrong.
struct MemorySource {
  void* (*allocate)(std::size_t bytes);
  void (*free)(void* block) noexcept;
};

namespace detail {
inline constexpr std::align_val_t host_alignment{64};
// Functions, not lambdas: nvcc loses the parameters of these.
inline void* allocate_host(std::size_t bytes) {
  return ::operator new(bytes, host_alignment, std::nothrow);
}
inline void free_host(void* block) noexcept { ::operator delete(block, host_alignment); }
}  // namespace detail

/// Host memory, 64-byte aligned.
inline MemorySource system_memory() { return {detail::allocate_host, detail::free_host}; }

/// Blocks of memory that were freed and wait to be used again, by size class, so that steady-state
/// training asks the system for nothing. Any thread may allocate and free.
class MemoryCache {
 public:
  explicit MemoryCache(MemorySource source) : source_(source) {}
  MemoryCache(const MemoryCache&) = delete;
  MemoryCache& operator=(const MemoryCache&) = delete;
  ~MemoryCache() { release(); }

  /// Bytes of the class that holds `bytes`: a power of two times 4, 5, 6 or 7 quarters.
  static std::size_t size_class(std::size_t bytes) {
    if (bytes <= alignment) return alignment;
    const std::size_t step = std::bit_floor(bytes - 1) / 4;
    const std::size_t unit = step < alignment ? alignment : step;
    return (bytes + unit - 1) / unit * unit;
  }

  /// A block of at least size_class(bytes) bytes, uninitialised, and its true size.
  std::pair<void*, std::size_t> allocate(std::size_t bytes) {
    const std::size_t wanted = size_class(bytes);
    std::lock_guard lock(mutex_);
    const auto fit = free_.lower_bound(wanted);
    if (fit != free_.end() && fit->first <= 2 * wanted) {
      const std::pair<void*, std::size_t> block{fit->second, fit->first};
      spare_.push_back(free_.extract(fit));
      use(block.second);
      return block;
    }
    ++system_allocations_;
    void* block = source_.allocate(wanted);
    if (block == nullptr) {
      release_all();
      block = source_.allocate(wanted);
    }
    if (block == nullptr) throw Error("out of memory: no " + std::to_string(wanted) + " bytes");
    held_ += index_t(wanted);
    use(wanted);
    return {block, wanted};
  }

  void free(void* block, std::size_t bytes) noexcept {
    std::lock_guard lock(mutex_);
    used_ -= index_t(bytes);
    try {
      if (spare_.empty()) {
        free_.emplace(bytes, block);
        return;
      }
      auto node = std::move(spare_.back());
      spare_.pop_back();
      node.key() = bytes, node.mapped() = block;
      free_.insert(std::move(node));
    } catch (...) {
      held_ -= index_t(bytes);
      source_.free(block);
    }
  }

  /// Gives every waiting block back to the system.
  void release() noexcept {
    std::lock_guard lock(mutex_);
    release_all();
  }

  /// Bytes of all blocks, those that wait included; of those in use; and the most that were in use
  /// at a time since `forget_peak`.
  struct Bytes {
    index_t held = 0, used = 0, peak = 0;
  };
  Bytes bytes() const {
    std::lock_guard lock(mutex_);
    return {held_, used_, peak_};
  }
  void forget_peak() {
    std::lock_guard lock(mutex_);
    peak_ = used_;
  }

  /// How often the system was asked for memory.
  index_t system_allocations() const {
    std::lock_guard lock(mutex_);
    return system_allocations_;
  }

 private:
  static constexpr std::size_t alignment = 64;

  void use(std::size_t bytes) {
    used_ += index_t(bytes);
    if (used_ > peak_) peak_ = used_;
  }

  void release_all() noexcept {
    for (const auto& [bytes, block] : free_) {
      held_ -= index_t(bytes);
      source_.free(block);
    }
    free_.clear();
  }

  MemorySource source_;
  mutable std::mutex mutex_;
  std::multimap<std::size_t, void*> free_;
  std::vector<std::multimap<std::size_t, void*>::node_type> spare_;  // of free_
  index_t system_allocations_ = 0, held_ = 0, used_ = 0, peak_ = 0;
};

/// Owns n uninitialised elements; goes back to the cache it came from.
template <class U>
class CachedBuffer {
 public:
  CachedBuffer() = default;
  CachedBuffer(std::shared_ptr<MemoryCache> cache, index_t n) : cache_(std::move(cache)), size_(n) {
    const auto [block, bytes] = cache_->allocate(sizeof(U) * std::size_t(n));
    data_ = static_cast<U*>(block);
    bytes_ = bytes;
  }
  CachedBuffer(CachedBuffer&& o) noexcept { swap(o); }
  CachedBuffer& operator=(CachedBuffer&& o) noexcept {
    CachedBuffer(std::move(o)).swap(*this);
    return *this;
  }
  ~CachedBuffer() {
    if (data_ != nullptr) cache_->free(data_, bytes_);
  }

  U* data() { return data_; }
  const U* data() const { return data_; }
  index_t size() const { return size_; }
  /// Bytes of the block that holds them.
  std::size_t room() const { return bytes_; }

 private:
  void swap(CachedBuffer& o) noexcept {
    std::swap(cache_, o.cache_);
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    std::swap(size_, o.size_);
  }

  std::shared_ptr<MemoryCache> cache_;
  U* data_ = nullptr;
  std::size_t bytes_ = 0;
  index_t size_ = 0;
};

}  // namespace dflash
