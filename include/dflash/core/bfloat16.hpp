#pragma once

#include <bit>
#include <cstdint>

#include "dflash/core/config.hpp"

namespace dflash {

/// The upper half of a 32-bit float, as storage.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  /// Rounds to nearest, ties to even; NaN stays NaN.
  DFLASH_HOST_DEVICE explicit bfloat16(float x) {
    const auto u = __builtin_bit_cast(std::uint32_t, x);
    bits =
        x != x ? std::uint16_t(u >> 16 | 0x40) : std::uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  DFLASH_HOST_DEVICE explicit operator float() const {
    return __builtin_bit_cast(float, std::uint32_t(bits) << 16);
  }
};

/// IEEE half precision, as storage.
struct float16 {
  std::uint16_t bits = 0;

  explicit operator float() const {
    const std::uint32_t sign = std::uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31,
                        mantissa = bits & 0x3ff;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
    if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float tiny = float(mantissa) * 0x1p-24f;  // zero or subnormal: exact
    return sign != 0 ? -tiny : tiny;
  }
};

}  // namespace dflash
