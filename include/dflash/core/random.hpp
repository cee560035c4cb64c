#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "dflash/core/config.hpp"

namespace dflash {

/// Counter-based random numbers (Philox 4x32-10, Salmon et al., SC 2011): the i-th number is a pure
/// function of (key, stream, i), so ranks, threads and resumed runs agree without talking.
class Random {
 public:
  explicit Random(std::uint64_t key, std::uint64_t stream = 0) : key_(key), stream_(stream) {}

  /// 128 random bits.
  std::array<std::uint32_t, 4> bits(std::uint64_t i) const {
    std::array<std::uint32_t, 4> c{std::uint32_t(i), std::uint32_t(i >> 32), std::uint32_t(stream_),
                                   std::uint32_t(stream_ >> 32)};
    auto k0 = std::uint32_t(key_), k1 = std::uint32_t(key_ >> 32);
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t a = std::uint64_t(0xD2511F53) * c[0],
                          b = std::uint64_t(0xCD9E8D57) * c[2];
      c = {std::uint32_t(b >> 32) ^ c[1] ^ k0, std::uint32_t(b), std::uint32_t(a >> 32) ^ c[3] ^ k1,
           std::uint32_t(a)};
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    return c;
  }

  std::uint64_t integer(std::uint64_t i) const {
    const auto c = bits(i);
    return std::uint64_t(c[1]) << 32 | c[0];
  }

  /// Uniform in [0, 1), 53 bits.
  double uniform(std::uint64_t i) const { return double(integer(i) >> 11) * 0x1p-53; }

  /// Standard normal (Box-Muller).
  double normal(std::uint64_t i) const {
    const auto c = bits(i);
    const double u = (double(std::uint64_t(c[1]) << 32 | c[0]) + 0.5) * 0x1p-64,
                 v = double(std::uint64_t(c[3]) << 32 | c[2]) * 0x1p-64;
    return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
  }

 private:
  std::uint64_t key_, stream_;
};

}  // namespace dflash
