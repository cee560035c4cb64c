#pragma once

#include <vector>

namespace dflash {

/// The vector instructions that the CPU operations use; chosen when the program runs.
enum class CpuPath { portable, avx2, avx512 };

/// The paths that this machine can run, the fastest last.
inline std::vector<CpuPath> cpu_paths() {
  std::vector<CpuPath> paths{CpuPath::portable};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    paths.push_back(CpuPath::avx2);
    if (__builtin_cpu_supports("avx512f")) paths.push_back(CpuPath::avx512);
  }
#endif
  return paths;
}

}  // namespace dflash
