#pragma once

#include <cstddef>

/// The only macro of the library: marks code that both the host and the GPU run.
#if defined(__CUDACC__)
#define DFLASH_HOST_DEVICE __host__ __device__
#else
#define DFLASH_HOST_DEVICE
#endif

namespace dflash {

/// Every size, index and count.
using index_t = std::ptrdiff_t;

/// Rows [begin, end).
struct Range {
  index_t begin = 0, end = 0;
  DFLASH_HOST_DEVICE index_t size() const { return end - begin; }
};

}  // namespace dflash
