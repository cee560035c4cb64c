#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/vector_math.hpp"

/// Attention of a few query rows, as decoding has them: packing keys and values for the tiles of
/// gemm would take longer than the products. The same multiply-adds in the same order, so the same
/// bits.
namespace dflash::detail {

/// Rows of a tile up to which this is faster.
inline constexpr index_t few_rows = 8;

template <class T>
bool has_few_rows(index_t rows, index_t dim) {
  return rows <= few_rows && dim <= gemm_chain;  // sums of one chain
}

/// The first or the second halves of a and b, element by element in turns.
template <int Lanes, int Half, class Register>
[[gnu::always_inline]] inline void interleave(const Register& a, const Register& b, Register& to) {
  constexpr int i = Half * (Lanes / 2), j = i + Lanes;
  if constexpr (Lanes == 2) {
    to = __builtin_shufflevector(a, b, i, j);
  } else if constexpr (Lanes == 4) {
    to = __builtin_shufflevector(a, b, i, j, i + 1, j + 1);
  } else if constexpr (Lanes == 8) {
    to = __builtin_shufflevector(a, b, i, j, i + 1, j + 1, i + 2, j + 2, i + 3, j + 3);
  } else {
    static_assert(Lanes == 16);
    to = __builtin_shufflevector(a, b, i, j, i + 1, j + 1, i + 2, j + 2, i + 3, j + 3, i + 4, j + 4,
                                 i + 5, j + 5, i + 6, j + 6, i + 7, j + 7);
  }
}

/// Element j of register i becomes element i of register j.
template <int Lanes, class Register>
[[gnu::always_inline]] inline void turn(Register (&r)[Lanes]) {
  for (int stage = 1; stage < Lanes; stage *= 2) {
    Register to[Lanes];
#pragma GCC unroll 16
    for (int i = 0; i < Lanes / 2; ++i) {
      interleave<Lanes, 0>(r[i], r[i + Lanes / 2], to[2 * i]);
      interleave<Lanes, 1>(r[i], r[i + Lanes / 2], to[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Lanes; ++i) r[i] = to[i];
  }
}

/// Keys in slots [slots), whole vectors of them, as columns.        to (dim, key_chunk)
template <int Bytes, class T>
[[gnu::always_inline]] inline void turn_keys(const T* keys, index_t step, Range slots, index_t dim,
                                             T* to) {
  using V = Vector<T, Bytes>;
  using Memory = typename V::Memory;
  for (index_t j = slots.begin / V::lanes * V::lanes; j < slots.end; j += V::lanes) {
    const T* key[V::lanes];
    // Where there is no key, some other: nobody sees it.
    for (int l = 0; l < V::lanes; ++l)
      key[l] = keys + std::clamp(j + l, slots.begin, slots.end - 1) * step;
    index_t d = 0;
    for (; d + V::lanes <= dim; d += V::lanes) {
      typename V::Register r[V::lanes];
#pragma GCC unroll 16
      for (int l = 0; l < V::lanes; ++l) r[l] = *(const Memory*)(key[l] + d);
      turn(r);
#pragma GCC unroll 16
      for (int l = 0; l < V::lanes; ++l) *(Memory*)(to + (d + l) * key_chunk + j) = r[l];
    }
    for (; d < dim; ++d)
      for (int l = 0; l < V::lanes; ++l) to[d * key_chunk + j + l] = key[l][d];
  }
}

/// Steps whose sums are made of groups: these are summed apart.
template <class Step>
concept SumsGroups = requires {
  Step::group;
};

/// c = a b for some rows and some vectors of columns, each sum one chain, or one of groups.
template <class Step, int Rows, int Vectors>
[[gnu::always_inline]] inline void few_products(const typename Step::A* a, index_t a_row, index_t n,
                                                const typename Step::B* b, index_t b_step,
                                                typename Step::Scalar* c, index_t c_row) {
  using V = typename Step::V;
  using Memory = typename V::Memory;
  typename V::Register sum[Rows][Vectors] = {};
  const auto multiply = [&](index_t i, auto& to) __attribute__((always_inline)) {
    typename Step::Factor factor[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) Step::load(b + i * b_step + v * V::lanes, factor[v]);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) Step::multiply(a + r * a_row + i, factor[v], to[r][v]);
  };
  if constexpr (SumsGroups<Step>) {
    for (index_t first = 0; first < n; first += Step::group) {
      typename Step::Group group[Rows][Vectors];
      for (index_t i = first; i < first + Step::group; ++i) multiply(i, group);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] += group[r][v].first + group[r][v].second;
    }
  } else {
    for (index_t i = 0; i < n; ++i) multiply(i, sum);
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) *(Memory*)(c + r * c_row + v * V::lanes) = sum[r][v];
}

/// The same for any columns, if n is at most key_chunk where they are not whole vectors.
template <class Step, int Rows>
[[gnu::always_inline]] inline void few_products(const typename Step::A* a, index_t a_row, index_t n,
                                                const typename Step::B* b, index_t b_step,
                                                index_t columns, typename Step::Scalar* c,
                                                index_t c_row) {
  constexpr index_t lanes = Step::V::lanes;
  constexpr int wide = SumsGroups<Step> ? 2 : 4;  // a group takes two more registers for each sum
  index_t j = 0;
  for (; j + wide * lanes <= columns; j += wide * lanes)
    few_products<Step, Rows, wide>(a, a_row, n, b + j, b_step, c + j, c_row);
  for (; j + lanes <= columns; j += lanes)
    few_products<Step, Rows, 1>(a, a_row, n, b + j, b_step, c + j, c_row);
  if (j == columns) return;
  // A copy fills the last vector up: compilers take scalar sums apart into products and additions.
  typename Step::B part[key_chunk * lanes];
  typename Step::Scalar last[Rows * lanes];
  for (index_t i = 0; i < n; ++i)
    for (index_t l = 0; l < lanes; ++l)
      part[i * lanes + l] = j + l < columns ? b[i * b_step + j + l] : typename Step::B(0);
  few_products<Step, Rows, 1>(a, a_row, n, part, lanes, last, lanes);
  for (index_t r = 0; r < Rows; ++r)
    for (index_t l = 0; j + l < columns; ++l) c[r * c_row + j + l] = last[r * lanes + l];
}

/// The same for any rows.                                   a (rows, n)  b (n, columns)
template <class Step>
[[gnu::always_inline]] inline void few_products(const typename Step::A* a, index_t a_row,
                                                index_t rows, index_t n, const typename Step::B* b,
                                                index_t b_step, index_t columns,
                                                typename Step::Scalar* c, index_t c_row) {
  index_t i = 0;
  // Sixteen registers hold no more sums.
  for (; sizeof(typename Step::V::Register) == 64 && i + 3 <= rows; i += 3)
    few_products<Step, 3>(a + i * a_row, a_row, n, b, b_step, columns, c + i * c_row, c_row);
  for (; i + 2 <= rows; i += 2)
    few_products<Step, 2>(a + i * a_row, a_row, n, b, b_step, columns, c + i * c_row, c_row);
  if (i < rows)
    few_products<Step, 1>(a + i * a_row, a_row, n, b, b_step, columns, c + i * c_row, c_row);
}

/// f(the path's width of vectors), compiled for them if f is always_inline.
template <class F>
void on_vectors(CpuPath path, F f) {
#if defined(__x86_64__)
  if (path >= CpuPath::avx512) {
    auto run = [&]() __attribute__((always_inline)) { f(std::integral_constant<int, 64>()); };
    return run_avx512(run);
  }
  if (path == CpuPath::avx2) {
    auto run = [&]() __attribute__((always_inline)) { f(std::integral_constant<int, 32>()); };
    return run_avx2(run);
  }
#endif
  auto run = [&]() __attribute__((always_inline)) { f(std::integral_constant<int, 16>()); };
  run_portable(run);
}

}  // namespace dflash::detail
