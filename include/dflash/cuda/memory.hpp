#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "dflash/core/memory_cache.hpp"
#include "dflash/cuda/expects.hpp"

namespace dflash {

namespace detail {
inline void* take_device_memory(std::size_t bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // the failure is told by the null
    return nullptr;
  }
  cuda_expects(status, "device memory");  // a kernel's fault may come to light here
  return block;
}
inline void give_device_memory(void* block) noexcept { cudaFree(block); }
}  // namespace detail

/// Host memory that the device reads without the system's help.
class PinnedMemory {
 public:
  explicit PinnedMemory(std::size_t bytes) {
    cuda_expects(cudaHostAlloc(reinterpret_cast<void**>(&data_), bytes, cudaHostAllocDefault),
                 "pinned memory");
  }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory() { cudaFreeHost(data_); }

  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

/// Where the memory of the current device comes from.
inline MemorySource device_memory() {
  return {&detail::take_device_memory, &detail::give_device_memory};
}

}  // namespace dflash
