#pragma once

#include "dflash/core/config.hpp"

namespace dflash_benchmark {

/// How often this program called operator new so far. Link allocation_count.cpp.
dflash::index_t allocation_count();

}  // namespace dflash_benchmark
