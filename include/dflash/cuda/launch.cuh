#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "dflash/core/config.hpp"
#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/ptx.cuh"

namespace dflash::cuda {

/// Shared memory that a block has without asking for more.
inline constexpr std::size_t plain_shared_bytes = 48 << 10;

/// Runs `kernel` on every thread of the grid, in the order of the stream. `shared_bytes` is what
/// shared_memory() then hands out; a grid without blocks does nothing.
template <class... Parameter, class... Argument>
void launch(cudaStream_t stream, void (*kernel)(Parameter...), dim3 grid, dim3 block,
            std::size_t shared_bytes, Argument&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > plain_shared_bytes)
    cuda_expects(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
        "more shared memory for a kernel");
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cuda_expects(cudaLaunchKernelEx(&config, kernel, std::forward<Argument>(arguments)...),
               "launch of a kernel");
}

/// How many blocks of `each` cover n.
inline unsigned blocks_for(index_t n, index_t each) { return unsigned((n + each - 1) / each); }

}  // namespace dflash::cuda
