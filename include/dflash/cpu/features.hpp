#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dflash::detail {

#if defined(__x86_64__)

/// A register of CPUID leaf 7.
inline unsigned cpuid_leaf7(unsigned subleaf, char which) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || subleaf > a) return 0;
  __get_cpuid_count(7, subleaf, &a, &b, &c, &d);
  return which == 'a' ? a : which == 'b' ? b : d;
}

inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
inline bool has_avx512() { return has_avx2() && __builtin_cpu_supports("avx512f"); }
inline bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bw") && (cpuid_leaf7(1, 'a') >> 5 & 1) != 0;
}

#else

inline bool has_avx2() { return false; }
inline bool has_avx512() { return false; }
inline bool has_avx512_bf16() { return false; }

#endif

#if defined(__x86_64__) && defined(__linux__)

/// Whether the processor has matrix tiles of bfloat16 and the system lets this process use them,
/// for which it must be asked (Linux 5.16 and later).
inline bool has_amx() {
  static const bool granted = [] {
    constexpr unsigned bf16_and_tiles = 1u << 22 | 1u << 24;
    constexpr long request_permission = 0x1023, tile_data = 18;
    return has_avx512_bf16() && (cpuid_leaf7(0, 'd') & bf16_and_tiles) == bf16_and_tiles &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return granted;
}

#else

inline bool has_amx() { return false; }

#endif

}  // namespace dflash::detail
