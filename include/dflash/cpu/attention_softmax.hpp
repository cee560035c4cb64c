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
  T *top, *sum;  // largest score, and sum of 2^(score - top)

  void begin(index_t rows) const {
    std::fill_n(top, rows, -std::numeric_limits<T>::infinity());
    std::fill_n(sum, rows, T(0));
  }
  RunningSoftmax from(index_t row) const { return {top + row, sum + row}; }
  /// What the sum of a row's values is to be multiplied by.
  T share(index_t row) const { return sum[row] > 0 ? 1 / sum[row] : T(0); }
  /// The natural logarithm of the sum of a row's e^score.
  T log_sum(index_t row) const { return (top[row] + std::log2(sum[row])) * T(natural_log_of_two); }
};

/// What query rows have of one chunk.                               all (rows)
template <class T>
struct ChunkSoftmax {
  T* largest;  // score
  T *top, *sum,
      *shrink;  // largest so far, sum of 2^(score - top), what sums before are to shrink by
};

/// The largest score of each row that sees some of a chunk; what a row does not see becomes
/// -infinity.                                                score (rows, key_chunk)
template <class T>
void find_largest(CpuPath path, const KeyChunk& chunk, index_t heads, T* score, T* to) {
  on_path(
      path, [ =, &chunk ]() __attribute__((always_inline)) {
        for (index_t i = chunk.rows.begin; i < chunk.rows.end; ++i) {
          T* const row = score + i * key_chunk;
          hide<int(key_chunk)>(chunk, chunk.visible[i / heads], row);
          to[i] = largest(row, key_chunk);
        }
      });
}

/// One step of the softmax of a stream of scores (arXiv:2205.14135): a chunk's scores become
/// 2^(score - top) with the largest so far as top; `seen` is the largest before.
///                                                     score (rows, key_chunk)  seen (rows)
template <int Width, class T>
void softmax_step(CpuPath path, const KeyChunk& chunk, const T* seen, T* score,
                  const ChunkSoftmax<T>& to) {
  on_path(
      path, [ =, &chunk ]() __attribute__((always_inline)) {
        const auto [begin, end] = chunk.rows;
        T lane[16];
        for (index_t i = begin; i < end; ++i) {
          to.top[i] = std::max(seen[i], to.largest[i]);
          // A row that has seen no key has a top of -infinity; any finite number serves it.
          T shrink = seen[i] - std::max(to.top[i], std::numeric_limits<T>::lowest());
          power_of_two(shrink);
          to.shrink[i] = shrink;
        }
        for (index_t i = begin; i < end; ++i) {
          T* const row = score + i * key_chunk;
          const T top = std::max(to.top[i], std::numeric_limits<T>::lowest());
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
          to.sum[i] = fold(lane, [](T a, T b) { return a + b; });
        }
      });
}

/// The same for as many slots as the chunk has.
template <class T>
void softmax_step(CpuPath path, const KeyChunk& chunk, const T* seen, T* score,
                  const ChunkSoftmax<T>& to) {
  const auto step = chunk.width() == 64   ? softmax_step<64, T>
                    : chunk.width() == 48 ? softmax_step<48, T>
                    : chunk.width() == 32 ? softmax_step<32, T>
                                          : softmax_step<16, T>;
  step(path, chunk, seen, score, to);
}

/// Adds what some rows have of a chunk to what they have seen before it.
template <class T>
void add_chunk(CpuPath path, Range rows, const ChunkSoftmax<T>& chunk, RunningSoftmax<T> seen) {
  on_path(
      path, [=]() __attribute__((always_inline)) {
        for (index_t i = rows.begin; i < rows.end; ++i) {
          seen.sum[i] = seen.sum[i] * chunk.shrink[i] + chunk.sum[i];
          seen.top[i] = chunk.top[i];
        }
      });
}

}  // namespace dflash::detail
