#pragma once

#include <cstddef>
#include <vector>

#include "dflash/core/memory_cache.hpp"

namespace dflash {

/// The memory of HostVector.
inline MemoryCache& host_cache() {
  static MemoryCache* const cache = new MemoryCache(system_memory());  // outlives all that is freed
  return *cache;
}

/// Allocates from host_cache.
template <class T>
struct CachedAllocator {
  using value_type = T;

  CachedAllocator() = default;
  template <class U>
  CachedAllocator(const CachedAllocator<U>&) {}

  T* allocate(std::size_t n) {
    const auto [block, bytes] = host_cache().allocate(header + n * sizeof(T));
    *static_cast<std::size_t*>(block) = bytes;
    return reinterpret_cast<T*>(static_cast<std::byte*>(block) + header);
  }
  void deallocate(T* data, std::size_t) noexcept {
    std::byte* const block = reinterpret_cast<std::byte*>(data) - header;
    host_cache().free(block, *reinterpret_cast<std::size_t*>(block));
  }
  friend bool operator==(CachedAllocator, CachedAllocator) { return true; }

 private:
  static constexpr std::size_t header = alignof(std::max_align_t);  // holds the block's true size
  static_assert(alignof(T) <= header);
};

/// What a training step keeps on the host for a while: a vector that asks the system for nothing
/// once steps repeat.
template <class T>
using HostVector = std::vector<T, CachedAllocator<T>>;

}  // namespace dflash
