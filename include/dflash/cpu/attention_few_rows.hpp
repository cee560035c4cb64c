#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/vector_math.hpp"

/// Attention of a few query rows, as decoding has them: packing keys and values for the tiles of
/// gemm would take longer than the products. The same chains of multiply-adds, so the same bits.
namespace dflash::detail {

/// Rows of a tile up to which this is faster.
inline constexpr index_t few_rows = 8;

template <class T>
bool has_few_rows(index_t rows, index_t dim) {
  return rows <= few_rows && dim <= gemm_chain;  // sums of one chain
}

/// The first or the second halves of a and b, element by element in turns.
template <int Half, class Register, int... I>
[[gnu::always_inline]] inline void interleave(const Register& a, const Register& b, Register& to,
                                              std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
  to = __builtin_shufflevector(a, b, (Half * (lanes / 2) + I / 2 + I % 2 * lanes)...);
}

/// Element j of register i becomes element i of register j.
template <int Lanes, class Register>
[[gnu::always_inline]] inline void turn(Register (&r)[Lanes]) {
  constexpr auto lanes = std::make_integer_sequence<int, Lanes>();
  for (int stage = 1; stage < Lanes; stage *= 2) {
    Register to[Lanes];
#pragma GCC unroll 16
    for (int i = 0; i < Lanes / 2; ++i) {
      interleave<0>(r[i], r[i + Lanes / 2], to[2 * i], lanes);
      interleave<1>(r[i], r[i + Lanes / 2], to[2 * i + 1], lanes);
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

/// out = row m or out += row m, each sum one chain of multiply-adds, for some vectors of columns.
template <int Bytes, int Vectors, class T>
[[gnu::always_inline]] inline void row_product(const T* row, index_t n, const T* m, index_t step,
                                               T* out, bool add) {
  using V = Vector<T, Bytes>;
  using Memory = typename V::Memory;
  typename V::Register sum[Vectors] = {};
  for (index_t i = 0; i < n; ++i, m += step)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[v] = row[i] * *(const Memory*)(m + v * V::lanes) + sum[v];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    Memory* const to = (Memory*)(out + v * V::lanes);
    *to = add ? sum[v] + *to : sum[v];
  }
}

/// The same for whole vectors of columns, or any columns if n is at most key_chunk.
///                                                            row (n)  m (n, columns)
template <int Bytes, class T>
[[gnu::always_inline]] inline void row_product(const T* row, index_t n, const T* m, index_t step,
                                               index_t columns, T* out, bool add) {
  constexpr index_t lanes = Vector<T, Bytes>::lanes;
  index_t c = 0;
  for (; c + 4 * lanes <= columns; c += 4 * lanes)
    row_product<Bytes, 4>(row, n, m + c, step, out + c, add);
  for (; c + lanes <= columns; c += lanes) row_product<Bytes, 1>(row, n, m + c, step, out + c, add);
  if (c == columns) return;
  // A copy fills the last vector up: compilers take scalar sums apart into products and additions.
  T part[key_chunk * lanes], last[lanes];
  for (index_t i = 0; i < n; ++i)
    for (index_t l = 0; l < lanes; ++l)
      part[i * lanes + l] = c + l < columns ? m[i * step + c + l] : 0;
  row_product<Bytes, 1>(row, n, part, lanes, last, false);
  for (index_t l = 0; c + l < columns; ++l) out[c + l] = add ? last[l] + out[c + l] : last[l];
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

/// The scores of a chunk's rows.        q (rows, dim)  score (rows, key_chunk)  scratch (dim,
/// key_chunk)
template <class T>
void scores_of_few(CpuPath path, const T* q, const T* keys, index_t step, index_t dim,
                   const KeyChunk& chunk, T* score, T* scratch) {
  on_vectors(
      path, [ =, &chunk ](auto bytes) __attribute__((always_inline)) {
        constexpr index_t lanes = Vector<T, bytes>::lanes;
        turn_keys<bytes>(keys + chunk.first * step, step, chunk.slots, dim, scratch);
        const index_t begin = chunk.slots.begin / lanes * lanes,
                      end = (chunk.slots.end + lanes - 1) / lanes * lanes;
        for (index_t i = chunk.rows.begin; i < chunk.rows.end; ++i)
          row_product<bytes>(q + i * dim, dim, scratch + begin, key_chunk, end - begin,
                             score + i * key_chunk + begin, false);
      });
}

/// y += the chunk's values, weighted.        share (rows, key_chunk)  y (rows, dim)
template <class T>
void add_values_of_few(CpuPath path, const T* share, const T* values, index_t step, index_t dim,
                       const KeyChunk& chunk, T* y) {
  on_vectors(
      path, [ =, &chunk ](auto bytes) __attribute__((always_inline)) {
        const Range slots = chunk.slots;
        for (index_t i = chunk.rows.begin; i < chunk.rows.end; ++i)
          row_product<bytes>(share + i * key_chunk + slots.begin, slots.size(),
                             values + (chunk.first + slots.begin) * step, step, dim, y + i * dim,
                             true);
      });
}

}  // namespace dflash::detail
