#pragma once

#include <cuda_runtime.h>

#include <string>

#include "dflash/core/error.hpp"

namespace dflash {

/// Throws Error with CUDA's own words, naming the caller's line, unless the call succeeded.
inline void cuda_expects(cudaError_t status, const char* what, const char* file = __builtin_FILE(),
                         int line = __builtin_LINE()) {
  if (status != cudaSuccess)
    throw Error(std::string(what) + ": " + cudaGetErrorString(status) + " (" + file + ":" +
                std::to_string(line) + ")");
}

}  // namespace dflash
