#pragma once

#include <cstddef>
#include <new>

#include "dflash/core/memory_cache.hpp"

namespace dflash {

/// Owns n uninitialised elements of host memory, 64-byte aligned.
template <class U>
using CpuBuffer = CachedBuffer<U>;

/// Where host memory comes from.
inline MemorySource system_memory() {
  constexpr std::align_val_t alignment{64};
  return {[](std::size_t bytes) { return ::operator new(bytes, alignment, std::nothrow); },
          [](void* block) noexcept { ::operator delete(block, alignment); }};
}

}  // namespace dflash
