#include "dflash/core/float8.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

namespace float8_test {

using dflash::float8_e4m3;

float value_of(int bits) {
  float8_e4m3 x;
  x.bits = std::uint8_t(bits);
  return static_cast<float>(x);
}

/// From the definition: sign, 4 bits of exponent with bias 7, 3 bits of mantissa.
float defined_value(int bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return NAN;
  const float magnitude = exponent == 0 ? std::ldexp(float(mantissa), -9)
                                        : std::ldexp(float(8 + mantissa), exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}

TEST_CASE("every eight-bit float has the value of its definition and survives a round trip") {
  for (int bits = 0; bits < 256; ++bits) {
    const float value = value_of(bits), expected = defined_value(bits);
    if (std::isnan(expected)) {
      CHECK(std::isnan(value));
      CHECK(std::isnan(value_of(float8_e4m3(value).bits)));
    } else {
      CHECK(value == expected);
      CHECK(std::signbit(value) == std::signbit(expected));
      CHECK(float8_e4m3(value).bits == bits);
    }
  }
}

TEST_CASE("a float becomes the nearest eight-bit float, ties to the even one") {
  for (int bits = 0; bits < 0x7e; ++bits) {
    const float low = value_of(bits), high = value_of(bits + 1), middle = (low + high) / 2;
    CHECK(float8_e4m3(middle).bits == (bits % 2 == 0 ? bits : bits + 1));
    CHECK(float8_e4m3(std::nextafter(middle, 0.0f)).bits == bits);
    CHECK(float8_e4m3(std::nextafter(middle, 1000.0f)).bits == bits + 1);
    CHECK(float8_e4m3(-std::nextafter(middle, 0.0f)).bits == (bits | 0x80));
  }
  CHECK(float8_e4m3(464.0f).bits == 0x7e);  // half way to 480, which does not exist
  CHECK(std::isnan(value_of(float8_e4m3(465.0f).bits)));
  CHECK(std::isnan(value_of(float8_e4m3(INFINITY).bits)));
  CHECK(std::isnan(value_of(float8_e4m3(NAN).bits)));
}

}  // namespace float8_test
