#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "dflash/core/memory_cache.hpp"
#include "dflash/cuda/expects.hpp"

namespace dflash {

namespace detail {
inline void* take_device_memory(std::size_t bytes) {
  void* block = nullptr;
  if (cudaMalloc(&block, bytes) == cudaSuccess) return block;
  cudaGetLastError();  // the failure is told by the null
  return nullptr;
}
inline void give_device_memory(void* block) noexcept { cudaFree(block); }
}  // namespace detail

/// Where the memory of the current device comes from.
inline MemorySource device_memory() {
  return {&detail::take_device_memory, &detail::give_device_memory};
}

}  // namespace dflash
