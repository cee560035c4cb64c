#pragma once

#include <algorithm>
#include <cstdint>

#include "dflash/cpu/gemm_tile.hpp"

namespace dflash::detail {

/// A tile of up to 32 rows and 32 columns in four matrix registers of `Tiles`. Reads 16 rows of a
/// at a time, also where fewer are wanted: what lies there does not reach c. k in whole sixteens.
template <class Tiles, int RowTiles, int Vectors>
struct AmxTile {
  static void run(const GemmTile<float, bfloat16_pair, bfloat16_pair>& t) {
    constexpr int width = 16 * Vectors;
    Tiles::template zero<0>();
    if constexpr (Vectors == 2) Tiles::template zero<1>();
    if constexpr (RowTiles == 2) Tiles::template zero<2>();
    if constexpr (RowTiles == 2 && Vectors == 2) Tiles::template zero<3>();
    for (index_t k = 0; k < t.k; k += 16) {
      Tiles::template load<4>(t.a + k, t.a_row);
      Tiles::template load<6>(t.panel + k * t.panel_k, t.panel_k);
      Tiles::template multiply<0, 4, 6>();
      if constexpr (Vectors == 2) {
        Tiles::template load<7>(t.panel + k * t.panel_k + 16, t.panel_k);
        Tiles::template multiply<1, 4, 7>();
      }
      if constexpr (RowTiles == 2) {
        Tiles::template load<5>(t.a + 16 * t.a_row + k, t.a_row);
        Tiles::template multiply<2, 5, 6>();
        if constexpr (Vectors == 2) Tiles::template multiply<3, 5, 7>();
      }
    }
    alignas(64) float sum[16 * RowTiles][width];
    Tiles::template store<0>(sum[0], width);
    if constexpr (Vectors == 2) Tiles::template store<1>(sum[0] + 16, width);
    if constexpr (RowTiles == 2) Tiles::template store<2>(sum[16 * (RowTiles - 1)], width);
    if constexpr (RowTiles == 2 && Vectors == 2)
      Tiles::template store<3>(sum[16 * (RowTiles - 1)] + 16, width);
    const index_t columns = std::min<index_t>(t.columns, width);
    for (index_t i = 0; i < t.rows; ++i)
      for (index_t j = 0; j < columns; ++j) {
        float& c = t.c[i * t.c_row + j];
        c = t.add ? c + sum[i][j] : sum[i][j];
      }
  }
};

#if defined(__x86_64__)

/// The processor's own matrix registers, each 16 rows of 64 bytes. Written in assembly because the
/// compilers' intrinsics take the register's number as a literal alone.
struct AmxRegisters {
  static void begin() {
    struct alignas(64) Configuration {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Configuration eight_whole_registers;
    asm volatile("ldtilecfg %0" : : "m"(eight_whole_registers));
  }
  static void end() { asm volatile("tilerelease"); }

  template <int R>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(R));
  }
  template <int R>
  static void load(const bfloat16_pair* from, index_t row) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(4 * row), "i"(R) : "memory");
  }
  template <int R>
  static void store(float* to, index_t row) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(4 * row), "i"(R) : "memory");
  }
  /// Sum += A B, of pairs.
  template <int Sum, int A, int B>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
  }
};

#endif

}  // namespace dflash::detail
