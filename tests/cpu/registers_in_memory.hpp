#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "dflash/cpu/gemm_tile.hpp"

namespace dflash_test {

using dflash::index_t;

/// Matrix registers in memory, so that what the processor's own are told to do is tested where
/// there are none. For one thread.
struct RegistersInMemory {
  static inline float tile[8][16][16];
  static void begin() {}
  static void end() {}
  template <int R>
  static void zero() {
    std::memset(tile[R], 0, sizeof tile[R]);
  }
  template <int R, class Element>
  static void load(const Element* from, index_t row) {
    for (index_t i = 0; i < 16; ++i) std::memcpy(tile[R][i], from + i * row, sizeof tile[R][i]);
  }
  template <int R>
  static void load_passing(const dflash::detail::bfloat16_pair* from, index_t row) {
    load<R>(from, row);
  }
  template <int R>
  static void store(float* to, index_t row) {
    for (index_t i = 0; i < 16; ++i) std::memcpy(to + i * row, tile[R][i], sizeof tile[R][i]);
  }
  static float half(float pair, int which) {
    const auto bits = std::bit_cast<std::uint32_t>(pair);
    return std::bit_cast<float>(which == 0 ? bits << 16 : bits & 0xffff0000u);
  }
  template <int Sum, int A, int B>
  static void multiply() {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j) {
        float sum[2] = {};
        for (int k = 0; k < 16; ++k)
          for (int h : {0, 1})
            sum[h] = std::fma(half(tile[A][i][k], h), half(tile[B][k][j], h), sum[h]);
        tile[Sum][i][j] += sum[0] + sum[1];
      }
  }
};

}  // namespace dflash_test
