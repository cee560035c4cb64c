#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "dflash/core/choices.hpp"
#include "dflash/cpu/features.hpp"

namespace dflash {

/// The vector instructions that the CPU operations use; chosen when the program runs. The last two
/// differ from avx512 in products of bfloat16 alone.
enum class CpuPath { portable, avx2, avx512, avx512_bf16, amx };

/// What products of float matrices are made of; sums are always float.
enum class CpuPrecision {
  fp32,
  bf16x3,  // each factor the sum of two bfloat16; of the four products all but the smallest
  bf16     // factors rounded to bfloat16
};

inline constexpr auto all_cpu_paths =
    choices<CpuPath>("path", {{"portable", CpuPath::portable},
                              {"avx2", CpuPath::avx2},
                              {"avx512", CpuPath::avx512},
                              {"avx512_bf16", CpuPath::avx512_bf16},
                              {"amx", CpuPath::amx}});
inline constexpr auto cpu_precisions = choices<CpuPrecision>(
    "precision",
    {{"fp32", CpuPrecision::fp32}, {"bf16x3", CpuPrecision::bf16x3}, {"bf16", CpuPrecision::bf16}});

inline constexpr std::string_view name_of(CpuPath path) { return all_cpu_paths.name_of(path); }
inline constexpr std::string_view name_of(CpuPrecision precision) {
  return cpu_precisions.name_of(precision);
}

/// The paths that this machine can run, the fastest last.
inline std::vector<CpuPath> cpu_paths() {
  std::vector<CpuPath> paths{CpuPath::portable};
  for (const auto& [path, there] : {std::pair{CpuPath::avx2, detail::has_avx2()},
                                    {CpuPath::avx512, detail::has_avx512()},
                                    {CpuPath::avx512_bf16, detail::has_avx512_bf16()},
                                    {CpuPath::amx, detail::has_amx()}})
    if (there) paths.push_back(path);
  return paths;
}

}  // namespace dflash
