#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "dflash/core/config.hpp"
#include "dflash/cpu/vector.hpp"

namespace dflash::detail {

/// Length of the chains that a sum over k is made of: each is a chain of multiply-adds that starts
/// at zero, and the chains are added in order, to what c was if it is added to. Long sums stay
/// accurate, and tiles of every shape give the same bits, wherever k is cut between chains. Matrix
/// registers alone have none.
inline constexpr index_t gemm_chain = 512;

/// Two bfloat16 that follow each other in k, the first in the lower half.
using bfloat16_pair = std::uint32_t;
/// A pair in memory, which may have been written as two values.
typedef bfloat16_pair bfloat16_pair_memory __attribute__((may_alias));

/// Four whole numbers of eight bits that follow each other in k, the first in the lowest bits.
enum class int8_quad : std::uint32_t {};

/// Values of k that one element of a factor holds.
template <class Element>
inline constexpr index_t k_per_element = 1;
template <>
inline constexpr index_t k_per_element<bfloat16_pair> = 2;
template <>
inline constexpr index_t k_per_element<int8_quad> = 4;

/// One tile of c = a b or c += a b: a few rows of a times one panel of b, in registers.
template <class T, class A = T, class B = T>
struct GemmTile {
  const A* a;  // element (row, k) at a[row * a_row + k * a_k]
  index_t a_row, a_k;
  const B* panel;  // element (k, column) at panel[k * panel_k + column]
  index_t panel_k, k;
  T* c;
  index_t c_row;
  index_t rows, columns;
  bool add;
};

/// How a tile takes one element of a column of a and a vector of b: both in the type of c.
template <class T, int Bytes>
struct PlainStep {
  static constexpr bool long_steps = false;  // several multiply-adds each
  using Scalar = T;
  using A = T;
  using B = T;
  using V = Vector<T, Bytes>;
  using Factor = typename V::Register;
  [[gnu::always_inline]] static void load(const B* panel, Factor& b) {
    b = *(const typename V::Memory*)panel;
  }
  [[gnu::always_inline]] static void multiply(const A* a, const Factor& b,
                                              typename V::Register& sum) {
    sum = *a * b + sum;
  }
};

/// The two halves of pairs as floats.
template <int Bytes>
struct PairFactor {
  using Bits = Vector<bfloat16_pair, Bytes>;
  using Floats = typename Vector<float, Bytes>::Register;
  Floats first, second;
  [[gnu::always_inline]] void set(const bfloat16_pair* pairs) {
    const typename Bits::Register bits = *(const typename Bits::Memory*)pairs;
    first = (Floats)(bits << 16);
    second = (Floats)(bits & 0xffff0000u);
  }
  [[gnu::always_inline]] void set_all(bfloat16_pair pair) {
    const typename Bits::Register bits = typename Bits::Register{} + pair;
    first = (Floats)(bits << 16);
    second = (Floats)(bits & 0xffff0000u);
  }
};

/// a in floats, b in pairs: the same sums, bit by bit, as with b in floats.
template <int Bytes>
struct WideningStep {
  static constexpr bool long_steps = true;
  using Scalar = float;
  using A = float;
  using B = bfloat16_pair;
  using V = Vector<float, Bytes>;
  using Factor = PairFactor<Bytes>;
  [[gnu::always_inline]] static void load(const B* panel, Factor& b) { b.set(panel); }
  [[gnu::always_inline]] static void multiply(const A* a, const Factor& b,
                                              typename V::Register& sum) {
    sum = a[0] * b.first + sum;
    sum = a[1] * b.second + sum;
  }
};

/// a and b in pairs, multiplied in the order in which processors with an instruction for it do.
template <int Bytes>
struct PairStep {
  static constexpr bool long_steps = true;
  using Scalar = float;
  using A = bfloat16_pair;
  using B = bfloat16_pair;
  using V = Vector<float, Bytes>;
  using Factor = PairFactor<Bytes>;
  [[gnu::always_inline]] static void load(const B* panel, Factor& b) { b.set(panel); }
  [[gnu::always_inline]] static void multiply(const A* a, const Factor& b,
                                              typename V::Register& sum) {
    Factor both;
    both.set_all(*(const bfloat16_pair_memory*)a);
    sum = both.second * b.second + sum;
    sum = both.first * b.first + sum;
  }
};

/// A step for panels that are far away: beyond the second cache level.
template <class Step>
struct DistantStep : Step {};
template <class Step>
inline constexpr bool is_distant = false;
template <class Step>
inline constexpr bool is_distant<DistantStep<Step>> = true;

/// Some columns of rows, from a tile that is wider than c or to it. Seldom: kept out of the way of
/// what tiles do else.
template <class T>
[[gnu::noinline]] void copy_rows(const T* from, index_t from_row, index_t rows, index_t columns,
                                 T* to, index_t to_row) {
  for (index_t r = 0; r < rows; ++r)
    for (index_t i = 0; i < columns; ++i) to[r * to_row + i] = from[r * from_row + i];
}

/// The rows R of a tile, `Vectors` vectors wide, in the vectors of Step.
template <class Step, int Vectors, int... R>
[[gnu::always_inline]] inline void run_tile(
    const GemmTile<typename Step::Scalar, typename Step::A, typename Step::B>& t,
    std::integer_sequence<int, R...>) {
  using T = typename Step::Scalar;
  using V = typename Step::V;
  using Memory = typename V::Memory;
  constexpr int rows = sizeof...(R), width = Vectors * V::lanes, second = width - V::lanes;
  constexpr index_t chain = gemm_chain / k_per_element<typename Step::B>;
  typename V::Register s[rows], u[rows];
  const typename Step::B* panel = t.panel;
  const typename Step::A* a[] = {t.a, t.a + 3 * t.a_row, t.a + 6 * t.a_row, t.a + 9 * t.a_row};
  index_t k = 0;
  constexpr bool few = Step::long_steps && rows > 2 && rows <= 8;
  const index_t ahead = few ? 4096 / index_t(sizeof *panel) : 16 * t.panel_k;
  // A panel wider than c ends in memory of its own.
  alignas(64) T wide[rows][width];
  T* to = t.c;
  index_t to_row = t.c_row;
  if (t.columns < width) {
    to = wide[0];
    to_row = width;
    if (t.add) copy_rows(t.c, t.c_row, rows, t.columns, to, to_row);
  }
  bool add = t.add;
  do {
    ((s[R] = u[R] = typename V::Register{}), ...);
    const index_t end = std::min(t.k, k + chain);
    const auto step = [&]() __attribute__((always_inline)) {
      typename Step::Factor b, d;
      // Where columns of a are rows of a matrix, many begin on a page of their own. Else a tall
      // tile has time to spare, but no register for another path.
      if (rows > 8 || t.a_k > 16) {
        const typename Step::A* const a_soon = a[0] + 16 * t.a_k;
        __builtin_prefetch(a_soon);
        __builtin_prefetch(a_soon + rows - 1);
      }
      // The processor does not foresee a panel's next page.
      const typename Step::B* const panel_soon = panel + ahead;
      for (int i = 0; i < width; i += 64 / int(sizeof *panel)) __builtin_prefetch(panel_soon + i);
      if constexpr (is_distant<Step>)
        for (int i = 0; i < width; i += 64 / int(sizeof *panel))
          __builtin_prefetch(panel + 4 * ahead + i, 0, 2);
      Step::load(panel, b);
      if constexpr (Vectors == 2) {
        Step::load(panel + second, d);
        ((Step::multiply(a[R / 3] + R % 3 * t.a_row, b, s[R]),
          Step::multiply(a[R / 3] + R % 3 * t.a_row, d, u[R])),
         ...);
      } else {
        (Step::multiply(a[R / 3] + R % 3 * t.a_row, b, s[R]), ...);
      }
      panel += t.panel_k;
      for (const typename Step::A*& p : a) p += t.a_k;
    };
    // Nor the rows of c: they come one by one, lest panels wait.
    for (; k < std::min<index_t>(end, rows); ++k) {
      for (int i = 0; i < width; i += 64 / int(sizeof(T)))
        __builtin_prefetch(t.c + k * t.c_row + i, 1);
      step();
    }
    for (; k < end; ++k) step();
    const auto each_row = [&](auto&& f) __attribute__((always_inline)) {
      T* c = to;
      const auto next = [&]() __attribute__((always_inline)) {
        // Keeps the compiler from making all rows' addresses first, more than there are registers.
        asm volatile("" : "+r"(c));
        return std::exchange(c, c + to_row);
      };
      (f(next(), s[R], u[R]), ...);
    };
    if (add)
      each_row([](const T* c, auto& left, auto& right) __attribute__((always_inline)) {
        left += *(const Memory*)c;
        if constexpr (Vectors == 2) right += *(const Memory*)(c + second);
      });
    each_row([](T * c, const auto& left, const auto& right) __attribute__((always_inline)) {
      *(Memory*)c = left;
      if constexpr (Vectors == 2) *(Memory*)(c + second) = right;
    });
    add = true;
  } while (k < t.k);
  if (t.columns < width) copy_rows(to, to_row, rows, t.columns, t.c, t.c_row);
}

template <class Step>
using TileOf = GemmTile<typename Step::Scalar, typename Step::A, typename Step::B>;

// One text for all instruction sets: a target attribute cannot depend on a template's parameter.

template <class Step, int Vectors, class Rows>
struct PortableTile {
  static void run(const TileOf<Step>& t) { run_tile<Step, Vectors>(t, Rows()); }
};

#if defined(__x86_64__)

template <class Step, int Vectors, class Rows>
struct Avx2Tile {
  [[gnu::target("avx2,fma")]] static void run(const TileOf<Step>& t) {
    run_tile<Step, Vectors>(t, Rows());
  }
};

template <class Step, int Vectors, class Rows>
struct Avx512Tile {
  [[gnu::target("avx512f")]] static void run(const TileOf<Step>& t) {
    run_tile<Step, Vectors>(t, Rows());
  }
};

/// a and b in pairs, by AVX512-BF16's dot product.
struct DotStep {
  static constexpr bool long_steps = false;
  using Scalar = float;
  using A = bfloat16_pair;
  using B = bfloat16_pair;
  using V = Vector<float, 64>;
  using Factor = V::Register;
  [[gnu::always_inline]] static void load(const B* panel, Factor& b) {
    b = *(const V::Memory*)panel;
  }
  // An intrinsic would want its target in every function that it is inlined through, as would
  // clang's check of the operands' sizes, which looks at the first letter.
  [[gnu::always_inline]] static void multiply(const A* a, const Factor& b, V::Register& sum) {
    Vector<bfloat16_pair, 64>::Register both =
        Vector<bfloat16_pair, 64>::Register{} + *(const bfloat16_pair_memory*)a;
    asm("vdpbf16ps %2, %1, %0" : "+?v"(sum) : "?v"(b), "?v"(both));
  }
};

#endif

}  // namespace dflash::detail
