#pragma once

#include <bit>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "dflash/core/config.hpp"

namespace dflash {

/// Blocks of 64-byte aligned memory that were freed and wait to be used again, by size class, so
/// that steady-state training asks the system for nothing. Any thread may allocate and free.
class MemoryCache {
 public:
  MemoryCache() = default;
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
      free_.erase(fit);
      return block;
    }
    ++system_allocations_;
    return {::operator new(wanted, std::align_val_t(alignment)), wanted};
  }

  void free(void* block, std::size_t bytes) noexcept {
    std::lock_guard lock(mutex_);
    try {
      free_.emplace(bytes, block);
    } catch (...) {
      ::operator delete(block, std::align_val_t(alignment));
    }
  }

  /// Gives every waiting block back to the system.
  void release() noexcept {
    std::lock_guard lock(mutex_);
    for (const auto& [bytes, block] : free_) ::operator delete(block, std::align_val_t(alignment));
    free_.clear();
  }

  /// How often the system was asked for memory.
  index_t system_allocations() const {
    std::lock_guard lock(mutex_);
    return system_allocations_;
  }

 private:
  static constexpr std::size_t alignment = 64;

  mutable std::mutex mutex_;
  std::multimap<std::size_t, void*> free_;
  index_t system_allocations_ = 0;
};

/// Owns n uninitialised elements, 64-byte aligned; goes back to the cache it came from.
template <class U>
class CpuBuffer {
 public:
  CpuBuffer() = default;
  CpuBuffer(std::shared_ptr<MemoryCache> cache, index_t n) : cache_(std::move(cache)), size_(n) {
    const auto [block, bytes] = cache_->allocate(sizeof(U) * std::size_t(n));
    data_ = static_cast<U*>(block);
    bytes_ = bytes;
  }
  CpuBuffer(CpuBuffer&& o) noexcept { swap(o); }
  CpuBuffer& operator=(CpuBuffer&& o) noexcept {
    CpuBuffer(std::move(o)).swap(*this);
    return *this;
  }
  ~CpuBuffer() {
    if (data_ != nullptr) cache_->free(data_, bytes_);
  }

  U* data() { return data_; }
  const U* data() const { return data_; }
  index_t size() const { return size_; }

 private:
  void swap(CpuBuffer& o) noexcept {
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
