#pragma once

#include <bit>
#include <cstdint>

namespace dflash {

/// An eight-bit float as storage: 4 bits of exponent, 3 of mantissa, no infinity, largest value 448
/// (E4M3 of arXiv:2209.05433).
struct float8_e4m3 {
  std::uint8_t bits = 0;

  static constexpr float largest = 448;

  float8_e4m3() = default;
  /// Rounds to nearest, ties to even; what is larger than the largest value becomes NaN.
  explicit float8_e4m3(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = u >> 24 & 0x80, magnitude = u & 0x7fffffff;
    if (magnitude < 0x3c800000) {  // below 2^-6 the steps are 2^-9: adding 2^14 rounds to them
      const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
      bits = std::uint8_t(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x46800000));
      return;
    }
    const std::uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
    bits = rounded >= 0x43f00000 ? std::uint8_t(sign | 0x7f)
                                 : std::uint8_t(sign | ((rounded >> 20) - (120 << 3)));
  }
  explicit operator float() const {
    const std::uint32_t sign = std::uint32_t(bits & 0x80) << 24, exponent = bits >> 3 & 15,
                        mantissa = bits & 7;
    if (exponent == 15 && mantissa == 7) return std::bit_cast<float>(sign | 0x7fc00000);
    if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 120) << 23 | mantissa << 20);
    const float tiny = float(mantissa) * 0x1p-9f;
    return sign != 0 ? -tiny : tiny;
  }
};

}  // namespace dflash
