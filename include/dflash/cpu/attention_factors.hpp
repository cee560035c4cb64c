#pragma once

#include <algorithm>
#include <type_traits>

#include "dflash/cpu/attention_few_rows.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/bfloat16_vector.hpp"

/// What attention's two products are made of: floats, or pairs of bfloat16 where the rule and the
/// precision let it round and the path multiplies them.
namespace dflash::detail {

/// Factors in the type of the values.
template <class T>
struct PlainFactors {
  using Element = T;
  template <int Bytes>
  using Step = PlainStep<T, Bytes>;

  static const GemmKernel<T>& kernel(CpuBackend<T>& backend) { return backend.gemm_kernel(); }
  /// Elements that n values make.
  static constexpr index_t depth(index_t n) { return n; }
  /// The element that holds value n.
  static constexpr index_t first(index_t n) { return n; }
  template <class F>
  static void on_vectors(CpuPath path, F f) {
    detail::on_vectors(path, f);
  }
  /// Rows of a left factor, depth(x_row) apart.                                        x (rows, n)
  static const T* left(CpuPath, const T* x, index_t, index_t, index_t, T*) { return x; }

  static void pack_keys(const GemmKernel<T>& kernel, const T* keys, index_t step, index_t dim,
                        const KeyChunk& chunk, T* to) {
    detail::pack_keys(kernel, keys, step, dim, chunk, to);
  }
  static void pack_values(const GemmKernel<T>& kernel, const T* values, index_t step, index_t dim,
                          const KeyChunk& chunk, T* to) {
    detail::pack_values(kernel, values, step, dim, chunk, to);
  }

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

/// Factors rounded to bfloat16, in pairs.
struct PairFactors {
  using Element = bfloat16_pair;
  template <int Bytes>
  using Step = DotStep;
  using Kernel = GemmKernel<float, bfloat16_pair, bfloat16_pair>;

  static Kernel kernel(CpuBackend<float>& backend) {
    return bfloat16_kernel(backend.path(), false);
  }
  static constexpr index_t depth(index_t n) { return (n + 1) / 2; }
  static constexpr index_t first(index_t n) { return n / 2; }
  template <class F>
  static void on_vectors(CpuPath, F f) {
    auto run = [&]() __attribute__((always_inline)) { f(std::integral_constant<int, 64>()); };
    run_avx512(run);
  }
  /// May write up to fifteen pairs behind the last row.
  static const Element* left(CpuPath, const float* x, index_t rows, index_t n, index_t x_row,
                             Element* to) {
    auto run = [=]() __attribute__((always_inline)) {
      for (index_t i = 0; i < rows; ++i)
        for (index_t at = 0; at < n; at += 32) {
          Pairs16::Register pairs;
          load_pairs(x + i * x_row + at, n - at, pairs);
          *(Pairs16::Memory*)(to + i * depth(x_row) + at / 2) = pairs;
        }
    };
    run_avx512(run);
    return to;
  }

  static void pack_keys(const Kernel& kernel, const float* keys, index_t step, index_t dim,
                        const KeyChunk& chunk, Element* to) {
    const Range slots = chunk.slots;
    const float* const first = keys + chunk.first * step;
    auto run = [ =, panel = kernel.panel_columns(), &kernel ]() __attribute__((always_inline)) {
      for (index_t j = slots.begin / 16 * 16; j < slots.end; j += 16) {
        const index_t begin = j / panel * panel, width = kernel.width(slots.end - begin);
        turn_pairs(first, step, slots, dim, j, to + begin * depth(dim) + j - begin, width);
      }
    };
    run_avx512(run);
  }
  static void pack_values(const Kernel& kernel, const float* values, index_t step, index_t dim,
                          const KeyChunk& chunk, Element* to) {
    const index_t panel = kernel.panel_columns(), pairs = depth(chunk.slots.end);
    for (index_t j = 0; j < dim; j += panel) {
      const index_t width = kernel.width(std::min(dim - j, panel));
      Element* const start = to + j * pairs;
      std::fill_n(start, chunk.slots.begin / 2 * width, Element(0));
      auto run = [=]() __attribute__((always_inline)) {
        pair_values(values + chunk.first * step + j, step, chunk.slots, std::min(dim - j, panel),
                    start, width);
      };
      run_avx512(run);
    }
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
    pair_values(values, step, slots, dim, to, width);
    step = width;
    return to + slots.begin / 2 * width;
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
  /// Neighbouring values as rows of pairs, from the first pair with one in `slots` on; zeros where
  /// there is none.                                                   to (pairs, whole vectors)
  [[gnu::always_inline]] static void pair_values(const float* values, index_t step, Range slots,
                                                 index_t dim, Element* to, index_t to_step) {
    alignas(64) static constexpr float zeros[64] = {};
    for (index_t i = slots.begin / 2; i < depth(slots.end); ++i) {
      const bool first = 2 * i >= slots.begin, second = 2 * i + 1 < slots.end;
      for (index_t d = 0; d < dim; d += 16) {
        Floats16::Register row, next;
        Pairs16::Register pairs;
        load_some(first ? values + 2 * i * step + d : zeros, dim - d, row);
        load_some(second ? values + (2 * i + 1) * step + d : zeros, dim - d, next);
        pair_rows(row, next, pairs);
        *(Pairs16::Memory*)(to + i * to_step + d) = pairs;
      }
    }
  }
};

#endif

/// f(the factors that the backend's attention multiplies).
template <class T, class F>
void with_factors(CpuBackend<T>& backend, bool may_round, F f) {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, float>)
    if (may_round && backend.precision() == CpuPrecision::bf16 &&
        backend.path() == CpuPath::avx512_bf16)
      return f(PairFactors());
#endif
  f(PlainFactors<T>());
}

}  // namespace dflash::detail
