#pragma once

#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/core/bfloat16.hpp"
#include "dflash/cpu/path.hpp"

namespace dflash_test {

/// How products can be computed on this machine. Paths beyond avx512 have no products of their own
/// in fp32.
template <class T>
std::vector<std::pair<dflash::CpuPath, dflash::CpuPrecision>> ways() {
  using dflash::CpuPath, dflash::CpuPrecision;
  std::vector<std::pair<CpuPath, CpuPrecision>> all;
  for (CpuPath path : dflash::cpu_paths())
    for (CpuPrecision precision : dflash::cpu_precisions.values())
      if (precision == CpuPrecision::fp32 ? path <= CpuPath::avx512 : std::is_same_v<T, float>)
        all.push_back({path, precision});
  return all;
}

/// What a factor of a product of this precision is.
template <class T>
std::vector<T> as_factor(std::vector<T> x, dflash::CpuPrecision precision) {
  if (precision == dflash::CpuPrecision::bf16)
    for (T& value : x) value = T(float(dflash::bfloat16(float(value))));
  return x;
}

}  // namespace dflash_test
