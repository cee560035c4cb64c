#pragma once

#include <algorithm>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/config.hpp"

namespace dflash::detail {

/// to = the n values of from, in float.
inline void widen(const bfloat16* from, index_t n, float* to) {
  for (index_t i = 0; i < n; ++i) to[i] = float(from[i]);
}
template <class T>
void widen(const T* from, index_t n, T* to) {
  std::copy_n(from, n, to);
}

}  // namespace dflash::detail
