#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "dflash/cpu/gemm_tile.hpp"

namespace dflash::detail {

/// A tile of up to 32 rows and 32 columns in four matrix registers of `Tiles`. Reads 16 rows of a
/// at a time, also where fewer are wanted: what lies there does not reach c. k in whole sixteens.
template <class Tiles, int RowTiles, int Vectors>
struct AmxTile {
  static constexpr int rows = 16 * RowTiles, width = 16 * Vectors;

  static void run(const GemmTile<float, bfloat16_pair, bfloat16_pair>& t) {
    if (t.rows == rows && t.columns == width) return run(t, t.c, t.c_row);
    // A tile larger than what is wanted of c ends in memory of its own.
    alignas(64) float whole[rows * width];
    if (t.add) {
      std::fill_n(whole, rows * width, 0.0f);
      copy_rows(t.c, t.c_row, t.rows, t.columns, whole, width);
    }
    run(t, whole, width);
    copy_rows(whole, width, t.rows, t.columns, t.c, t.c_row);
  }

 private:
  static void run(const GemmTile<float, bfloat16_pair, bfloat16_pair>& t, float* c, index_t c_row) {
    each_sum([&](auto sum, int row, int column) {
      if (t.add)
        Tiles::template load<sum>(c + row * c_row + column, c_row);
      else
        Tiles::template zero<sum>();
    });
    // In large products rows of a meet one panel of b after the other: a is what the first cache
    // level should keep.
    for (index_t k = 0; k < t.k; k += 16) {
      const bfloat16_pair* const panel = t.panel + k * t.panel_k;
      Tiles::template load<4>(t.a + k, t.a_row);
      Tiles::template load_passing<6>(panel, t.panel_k);
      if constexpr (Vectors == 2) Tiles::template load_passing<7>(panel + 16, t.panel_k);
      if constexpr (RowTiles == 2) Tiles::template load<5>(t.a + 16 * t.a_row + k, t.a_row);
      Tiles::template multiply<0, 4, 6>();
      if constexpr (Vectors == 2) Tiles::template multiply<1, 4, 7>();
      if constexpr (RowTiles == 2) Tiles::template multiply<2, 5, 6>();
      if constexpr (RowTiles == 2 && Vectors == 2) Tiles::template multiply<3, 5, 7>();
    }
    each_sum([&](auto sum, int row, int column) {
      Tiles::template store<sum>(c + row * c_row + column, c_row);
    });
  }

  /// f(register, the row and column of c that it begins with)
  template <class F>
  static void each_sum(F f) {
    f(std::integral_constant<int, 0>(), 0, 0);
    if constexpr (Vectors == 2) f(std::integral_constant<int, 1>(), 0, 16);
    if constexpr (RowTiles == 2) f(std::integral_constant<int, 2>(), 16, 0);
    if constexpr (RowTiles == 2 && Vectors == 2) f(std::integral_constant<int, 3>(), 16, 16);
  }
};

#if defined(__x86_64__)

/// a and b in pairs, summed by vectors in the order of matrix registers: of sixteen pairs the first
/// values' products and the second ones' apart, one after the other, then both together.
struct MatrixStep : PairStep<64> {
  static constexpr index_t group = 16;
  struct Group {
    V::Register first = {}, second = {};
  };
  [[gnu::always_inline]] static void multiply(const A* a, const Factor& b, Group& sum) {
    Factor both;
    both.set_all(*(const bfloat16_pair_memory*)a);
    sum.first = both.first * b.first + sum.first;
    sum.second = both.second * b.second + sum.second;
  }

  /// While it lives the thread's numbers below the smallest normal one are zeros, as they are to
  /// matrix registers.
  class Flush {
   public:
    Flush() {
      asm volatile("stmxcsr %0" : "=m"(before_) : : "memory");
      const std::uint32_t flushing = before_ | 0x8040;
      asm volatile("ldmxcsr %0" : : "m"(flushing) : "memory");
    }
    Flush(const Flush&) = delete;
    Flush& operator=(const Flush&) = delete;
    ~Flush() { asm volatile("ldmxcsr %0" : : "m"(before_) : "memory"); }

   private:
    std::uint32_t before_;
  };
};

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
  /// Elements of four bytes.
  template <int R, class Element>
  static void load(const Element* from, index_t row) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(4 * row), "i"(R) : "memory");
  }
  /// The same, without a place in the first cache level.
  template <int R>
  static void load_passing(const bfloat16_pair* from, index_t row) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(4 * row), "i"(R) : "memory");
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
