#pragma once

#include <nccl.h>

#include <string>

#include "dflash/core/error.hpp"

namespace dflash {

/// Throws Error with NCCL's own words, naming the caller's line, unless the call succeeded or, for
/// a communicator that does not block, is under way.
inline void nccl_expects(ncclResult_t status, const char* what, const char* file = __builtin_FILE(),
                         int line = __builtin_LINE()) {
  if (status != ncclSuccess && status != ncclInProgress)
    throw Error(std::string(what) + ": " + ncclGetErrorString(status) + " (" + file + ":" +
                std::to_string(line) + ")");
}

}  // namespace dflash
