#pragma once

#include "dflash/core/memory_cache.hpp"

namespace dflash {

/// Owns n uninitialised elements of host memory, 64-byte aligned.
template <class U>
using CpuBuffer = CachedBuffer<U>;

}  // namespace dflash
