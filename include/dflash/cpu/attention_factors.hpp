#pragma once

#include <algorithm>
#include <type_traits>

#include "dflash/cpu/attention_few_rows.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/bfloat16_vector.hpp"
#include "dflash/cpu/gemm_rows.hpp"

/// What attention's two products are made of: floats, or pairs of bfloat16 where the rule and the
/// precision let it round and the path multiplies them.
namespace dflash::detail {

/// Factors in the type of the values.
template <class T>
struct PlainFactors {
  using Element = T;
  using Kernel = GemmKernel<T>;
  template <int Bytes>
  using Step = PlainStep<T, Bytes>;
  /// Whether keys of small blocks are packed together.
  static constexpr bool packs_small_blocks = true;
  /// Slots of a chunk whose weighed values are summed before a row's sum takes them.
  static constexpr index_t slots_of_sum = key_chunk;

  static Kernel kernel(CpuBackend<T>& backend) { return backend.gemm_kernel(); }
  /// Elements that n values make.
  static constexpr index_t depth(index_t n) { return n; }
  /// The element that holds value n.
  static constexpr index_t first(index_t n) { return n; }
  template <class F>
  static void on_vectors(CpuPath path, F f) {
    detail::on_vectors(path, f);
  }
  /// The same for sums of few rows' products.
  template <class F>
  static void sum_few(CpuPath path, F f) {
    on_vectors(path, f);
  }
  /// Rows of a left factor, depth(x_row) apart.                                        x (rows, n)
  static const T* left(CpuPath, const T* x, index_t, index_t, index_t, T*) { return x; }

  /// Slots that a block's keys take.
  static constexpr index_t pitch(index_t keys) { return keys; }
  /// Elements in memory of a copied key, and of a copied value.
  static constexpr index_t key_step(index_t dim) { return dim + 64 / index_t(sizeof(T)); }
  static constexpr index_t value_step(index_t dim) { return key_step(dim); }

  /// Keys [slots) as rows, from slot 0 on: where they lie, or copied.
  static Strided<T> key_rows(const T* keys, index_t step, Range slots, index_t dim, T* room) {
    const index_t bytes = step * index_t(sizeof(T));
    if (bytes <= 4096 && !crowded(bytes)) return {keys, step, 1};
    for (index_t j = slots.begin; j < slots.end; ++j)
      std::copy_n(keys + j * step, dim, room + j * key_step(dim));
    return {room, key_step(dim), 1};
  }
  /// Values [slots) as columns, from slot 0 on.
  static Strided<T> value_columns(const T* values, index_t step, Range slots, index_t dim,
                                  T* room) {
    const Strided<T> rows = key_rows(values, step, slots, dim, room);
    return {rows.data, rows.column_step, rows.row_step};
  }
  /// Rows as the columns of a panel.                        q (lanes, dim)  to (dim, lanes)
  static void pack_queries(const T* q, index_t lanes, index_t dim, T*, T* to) {
    transpose(q, dim, dim, lanes, to, lanes);
  }
  /// What rows weigh slots [slots) with, from slot 0 on.             share (slots, lanes)
  static const T* pack_shares(const T* share, index_t, Range, T*) { return share; }

  /// The keys of a chunk as columns, whole vectors of them.                    to (dim, key_chunk)
  template <int Bytes>
  [[gnu::always_inline]] static void turn_keys(const T* keys, index_t step, Range slots,
                                               index_t dim, T* to) {
    detail::turn_keys<Bytes>(keys, step, slots, dim, to);
  }
  /// The values of a chunk from the element with the first on, as rows `step` apart.
  [[gnu::always_inline]] static const T* value_rows(const T* values, index_t& step, Range slots,
                                                    index_t, T*) {
    return values + slots.begin * step;
  }
};

#if defined(__x86_64__)

/// Factors rounded to bfloat16, in pairs of which `whole` are taken at once.
template <index_t whole>
struct PairsOf {
  using Element = bfloat16_pair;
  using Kernel = GemmKernel<float, bfloat16_pair, bfloat16_pair>;

  static constexpr index_t depth(index_t n) { return (n + 2 * whole - 1) / (2 * whole) * whole; }
  static constexpr index_t first(index_t n) { return n / (2 * whole) * whole; }

  template <class F>
  static void on_vectors(CpuPath, F f) {
    auto run = [&]() __attribute__((always_inline)) { f(std::integral_constant<int, 64>()); };
    run_avx512(run);
  }
  template <class F>
  static void sum_few(CpuPath path, F f) {
    on_vectors(path, f);
  }

  /// May write up to fifteen pairs behind the last row.
  static const Element* left(CpuPath, const float* x, index_t rows, index_t n, index_t x_row,
                             Element* to) {
    round_rows(x, rows, n, x_row, to, depth(x_row));
    return to;
  }

  static constexpr index_t key_step(index_t dim) { return (dim + 31) / 32 * 16; }
  static Strided<Element> key_rows(const float* keys, index_t step, Range slots, index_t dim,
                                   Element* room) {
    round_rows(keys + slots.begin * step, slots.size(), dim, step,
               room + slots.begin * key_step(dim), key_step(dim));
    return {room, key_step(dim), 1};
  }
  static void pack_queries(const float* q, index_t lanes, index_t dim, Element* room, Element* to) {
    round_rows(q, lanes, dim, dim, room, key_step(dim));
    transpose(room, key_step(dim), depth(dim), lanes, to, lanes);
  }
  static const Element* pack_shares(const float* share, index_t lanes, Range slots, Element* room) {
    auto run = [=]() __attribute__((always_inline)) {
      pair_values(share, lanes, slots, pairs(slots), lanes, room, lanes);
    };
    run_avx512(run);
    return room;
  }

  template <int>
  [[gnu::always_inline]] static void turn_keys(const float* keys, index_t step, Range slots,
                                               index_t dim, Element* to) {
    for (index_t j = slots.begin / 16 * 16; j < slots.end; j += 16)
      turn_pairs(keys, step, slots, dim, j, to + j, key_chunk);
  }
  [[gnu::always_inline]] static const Element* value_rows(const float* values, index_t& step,
                                                          Range slots, index_t dim, Element* to) {
    const index_t width = (dim + 15) / 16 * 16;
    pair_values(values, step, slots, pairs(slots), dim, to, width);
    step = width;
    return to + first(slots.begin) * width;
  }

 protected:
  /// The pairs that are taken for some slots.
  static constexpr Range pairs(Range slots) { return {first(slots.begin), depth(slots.end)}; }
  /// May write up to fifteen pairs behind the last row.
  static void round_rows(const float* x, index_t rows, index_t n, index_t x_row, Element* to,
                         index_t to_row) {
    auto run = [=]() __attribute__((always_inline)) {
      for (index_t i = 0; i < rows; ++i)
        for (index_t at = 0; at < n; at += 32) {
          Pairs16::Register pairs;
          load_pairs(x + i * x_row + at, n - at, pairs);
          *(Pairs16::Memory*)(to + i * to_row + at / 2) = pairs;
        }
    };
    run_avx512(run);
  }
  /// Elements d to d + 15 of a pair of neighbouring values, zeros for those that are not in
  /// `slots`.
  [[gnu::always_inline]] static void load_pair(const float* values, index_t step, Range slots,
                                               index_t pair, index_t d, index_t dim,
                                               Pairs16::Register& to) {
    alignas(64) static constexpr float zeros[64] = {};
    const auto at = [&](index_t j) {
      return j >= slots.begin && j < slots.end ? values + j * step + d : zeros;
    };
    Floats16::Register row, next;
    load_some(at(2 * pair), dim - d, row);
    load_some(at(2 * pair + 1), dim - d, next);
    pair_rows(row, next, to);
  }
  /// Neighbouring values as rows of pairs.                            to (pairs, whole vectors)
  [[gnu::always_inline]] static void pair_values(const float* values, index_t step, Range slots,
                                                 Range pairs, index_t dim, Element* to,
                                                 index_t to_step) {
    for (index_t i = pairs.begin; i < pairs.end; ++i)
      for (index_t d = 0; d < dim; d += 16) {
        Pairs16::Register some;
        load_pair(values, step, slots, i, d, dim, some);
        *(Pairs16::Memory*)(to + i * to_step + d) = some;
      }
  }

 private:
  /// Keys j to j + 15 as columns; where there is no key, some other: nobody sees it.
  [[gnu::always_inline]] static void turn_pairs(const float* keys, index_t step, Range slots,
                                                index_t dim, index_t j, Element* to,
                                                index_t to_step) {
    const float* key[16];
    for (int l = 0; l < 16; ++l)
      key[l] = keys + std::clamp(j + l, slots.begin, slots.end - 1) * step;
    for (index_t d = 0; d < dim; d += 32) {
      Pairs16::Register r[16];
#pragma GCC unroll 16
      for (int l = 0; l < 16; ++l) load_pairs(key[l] + d, dim - d, r[l]);
      turn(r);
      const index_t rows = std::min<index_t>(depth(dim - d), 16);
      for (index_t i = 0; i < rows; ++i) *(Pairs16::Memory*)(to + (d / 2 + i) * to_step) = r[i];
    }
  }
};

/// For AVX512-BF16's dot product.
struct PairFactors : PairsOf<1> {
  template <int Bytes>
  using Step = DotStep;
  static constexpr bool packs_small_blocks = true;
  static constexpr index_t slots_of_sum = key_chunk;

  static Kernel kernel(CpuBackend<float>& backend) {
    return bfloat16_kernel(backend.path(), false);
  }
  static constexpr index_t pitch(index_t keys) { return 2 * depth(keys); }
  static constexpr index_t value_step(index_t dim) { return (dim + 15) / 16 * 16; }

  static Strided<Element> value_columns(const float* values, index_t step, Range slots, index_t dim,
                                        Element* room) {
    auto run = [=]() __attribute__((always_inline)) {
      pair_values(values, step, slots, pairs(slots), dim, room, value_step(dim));
    };
    run_avx512(run);
    return {room, 1, value_step(dim)};
  }
};

/// For matrix registers, which take sixteen pairs of a row of either factor: values are turned, so
/// that those of one element follow each other.
template <class Tiles>
struct AmxFactors : PairsOf<16> {
  template <int>
  using Step = MatrixStep;
  static constexpr bool packs_small_blocks = false;
  static constexpr index_t slots_of_sum = 2 * MatrixStep::group;

  static Kernel kernel(CpuBackend<float>&) { return amx_kernel<Tiles>(false); }
  template <class F>
  static void sum_few(CpuPath path, F f) {
    const MatrixStep::Flush flush;
    on_vectors(path, f);
  }
  static constexpr index_t pitch(index_t keys) { return keys; }
  static constexpr index_t value_step(index_t dim) { return depth(dim); }

  static Strided<Element> value_columns(const float* values, index_t step, Range slots, index_t dim,
                                        Element* room) {
    auto run = [=]() __attribute__((always_inline)) {
      for (index_t i = pairs(slots).begin; i < pairs(slots).end; i += 16)
        for (index_t d = 0; d < dim; d += 16) {
          Pairs16::Register r[16];
#pragma GCC unroll 16
          for (int l = 0; l < 16; ++l) load_pair(values, step, slots, i + l, d, dim, r[l]);
          turn(r);
#pragma GCC unroll 16
          for (int l = 0; l < 16; ++l) *(Pairs16::Memory*)(room + (d + l) * row_step + i) = r[l];
        }
    };
    run_avx512(run);
    return {room, row_step, 1};
  }

 private:
  static constexpr index_t row_step = key_chunk / 2;  // of a chunk's values, turned
};

#endif

/// f(the factors that the backend's attention multiplies).
template <class T, class F>
void with_factors(CpuBackend<T>& backend, bool may_round, F f) {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, float>)
    if (may_round && backend.precision() == CpuPrecision::bf16) {
      if (backend.path() == CpuPath::avx512_bf16) return f(PairFactors());
      if (backend.path() == CpuPath::amx) return f(AmxFactors<AmxRegisters>());
    }
#endif
  f(PlainFactors<T>());
}

}  // namespace dflash::detail
