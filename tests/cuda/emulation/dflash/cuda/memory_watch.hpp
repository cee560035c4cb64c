#pragma once

// The emulator's counterpart of the library's dflash/cuda/memory_watch.hpp.

#include <cuda_runtime.h>

#include <cstddef>

#include "emulation/sanitizers.hpp"

namespace dflash::cuda {

/// A block that is used again is poison again, and what it has beyond `bytes` is out of range.
inline void memory_taken(cudaStream_t stream, void* block, std::size_t bytes, std::size_t room) {
  if (block == nullptr) return;
  cuda_emulation::enqueue(stream, [=] {
    cuda_emulation::permit(block, room);
    cuda_emulation::poison(block, room);
    cuda_emulation::forbid(static_cast<char*>(block) + bytes, room - bytes);
  });
}

}  // namespace dflash::cuda
