#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace dflash::cuda {

/// From here on the stream uses `bytes` of a block that has `room`. Nothing to do on a device; an
/// emulated one watches the rest.
inline void memory_taken(cudaStream_t, void* /*block*/, std::size_t /*bytes*/,
                         std::size_t /*room*/) {}

}  // namespace dflash::cuda
