#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash::detail {

/// Scores are the logarithms to base two of what the softmax weighs: cheaper to raise.
inline constexpr double natural_log_of_two = 0.6931471805599453;

/// What query rows have seen so far.                                       all (rows)
template <class T>
struct RunningSoftmax {
  T *top, *sum;         // largest score, and sum of 2^(score - top)
  T *new_top, *shrink;  // scratch

  void begin(index_t rows) const {
    std::fill_n(top, rows, -std::numeric_limits<T>::infinity());
    std::fill_n(sum, rows, T(0));
  }
  RunningSoftmax from(index_t row) const {
    return {top + row, sum + row, new_top + row, shrink + row};
  }
  /// What the sum of a row's values is to be multiplied by.
  T share(index_t row) const { return sum[row] > 0 ? 1 / sum[row] : T(0); }
  /// The natural logarithm of the sum of a row's e^score.
  T log_sum(index_t row) const { return (top[row] + std::log2(sum[row])) * T(natural_log_of_two); }
};

/// One step of the softmax of a stream of scores (arXiv:2205.14135): a chunk's scores become
/// 2^(score - top) with the largest so far as top, and what the rows have summed is scaled to it.
///                                                     score (rows, key_chunk)  y (rows, dim)
template <int Width, class T>
void softmax_step(CpuPath path, const KeyChunk& chunk, index_t heads, T* score,
                  RunningSoftmax<T> run, T* y, index_t dim) {
  on_path(
      path, [ =, &chunk ]() __attribute__((always_inline)) {
        const auto [begin, end] = chunk.rows;
        T lane[16];
        for (index_t i = begin; i < end; ++i) {
          T* const row = score + i * key_chunk;
          hide<Width>(chunk, chunk.visible[i / heads], row);
          for (int l = 0; l < 16; ++l) {
            T largest = row[l];
            for (int j = 16; j < Width; j += 16)
              largest = largest < row[j + l] ? row[j + l] : largest;
            lane[l] = largest;
          }
          run.new_top[i] = std::max(run.top[i], fold(lane, [](T a, T b) { return a < b ? b : a; }));
        }
        for (index_t i = begin; i < end; ++i) {
          // A row that has seen no key has a top of -infinity; any finite number serves it.
          const T top = std::max(run.new_top[i], std::numeric_limits<T>::lowest());
          T shrink = run.top[i] - top;
          power_of_two(shrink);
          run.shrink[i] = shrink;
          run.top[i] = top;
        }
        for (index_t i = begin; i < end; ++i) {
          T* const row = score + i * key_chunk;
          const T top = run.top[i];
          for (int j = 0; j < Width; ++j) {
            T p = row[j] - top;
            power_of_two(p);
            row[j] = p;
          }
          for (int l = 0; l < 16; ++l) {
            T sum = row[l];
            for (int j = 16; j < Width; j += 16) sum += row[j + l];
            lane[l] = sum;
          }
          const T sum = fold(lane, [](T a, T b) { return a + b; }), shrink = run.shrink[i];
          run.sum[i] = run.sum[i] * shrink + sum;
          run.top[i] = run.new_top[i];
          if (shrink != 1)
            for (index_t d = 0; d < dim; ++d) y[i * dim + d] *= shrink;
        }
      });
}

/// The same for as many slots as the chunk has.
template <class T>
void softmax_step(CpuPath path, const KeyChunk& chunk, index_t heads, T* score,
                  RunningSoftmax<T> run, T* y, index_t dim) {
  const auto step = chunk.width() == 64   ? softmax_step<64, T>
                    : chunk.width() == 48 ? softmax_step<48, T>
                    : chunk.width() == 32 ? softmax_step<32, T>
                                          : softmax_step<16, T>;
  step(path, chunk, heads, score, run, y, dim);
}

}  // namespace dflash::detail
