#pragma once

#include "dflash/core/bfloat16.hpp"
#include "dflash/cuda/ptx.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash::cuda {

/// Elements from one row of a tile in shared memory to the next. The padding makes the eight rows
/// that one ldmatrix phase reads start in eight different groups of four banks: a row is an odd
/// number of such groups.
template <int Columns>
inline constexpr int tile_stride = Columns + 8;

__device__ __forceinline__ int lane_index() { return int(threadIdx.x) % warp_size; }

/// Where a lane's part of a 16 x 16 left factor (or transposed right factor) begins.
template <int Columns>
__device__ __forceinline__ int left_offset() {
  return lane_index() % 16 * tile_stride<Columns> + lane_index() / 16 * 8;
}
/// Where a lane's part of a 16 x 16 piece of a right factor begins, whose rows are columns of the
/// product.
template <int Columns>
__device__ __forceinline__ int right_offset() {
  return (lane_index() % 8 + lane_index() / 16 * 8) * tile_stride<Columns> +
         lane_index() / 8 % 2 * 8;
}

template <int M, int N>
using Accumulator = float[M][N][4];  // 16 M rows, 8 N columns, as multiply_add holds them

template <int M, int N>
__device__ __forceinline__ void clear(Accumulator<M, N>& c) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] = 0;
}

template <int M, int N>
__device__ __forceinline__ void multiply_add_pair(Accumulator<M, N>& c, int m, int n,
                                                  const std::uint32_t (&a)[4],
                                                  const std::uint32_t (&b)[4]) {
  const std::uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
  multiply_add(c[m][n], a, left);
  multiply_add(c[m][n + 1], a, right);
}

/// c += a b^T of two tiles in shared memory.       a (16 M, Columns)  b (8 N, Columns)
/// Fewer steps at a time (of all Columns / 16) leave the compiler fewer registers to fill ahead.
template <int Columns, int M, int N, int Steps = Columns / 16>
__device__ __forceinline__ void multiply_rows(Accumulator<M, N>& c, const bfloat16* a,
                                              const bfloat16* b) {
  a += left_offset<Columns>();
  b += right_offset<Columns>();
#pragma unroll Steps
  for (int k = 0; k < Columns; k += 16) {
    std::uint32_t left[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) load_matrices(left[m], a + m * 16 * tile_stride<Columns> + k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      std::uint32_t right[4];
      load_matrices(right, b + n * 8 * tile_stride<Columns> + k);
#pragma unroll
      for (int m = 0; m < M; ++m) multiply_add_pair<M, N>(c, m, n, left[m], right);
    }
  }
}

/// c += a b, a in registers, b some columns of a tile in shared memory.
///                                                 a (16 M, 16 K)  b (16 K, 8 N)
template <int Columns, int M, int K, int N>
__device__ __forceinline__ void multiply_columns(Accumulator<M, N>& c,
                                                 const std::uint32_t (&a)[M][K][4],
                                                 const bfloat16* b) {
  b += left_offset<Columns>();
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      std::uint32_t right[4];
      load_matrices_transposed(right, b + k * 16 * tile_stride<Columns> + n * 8);
#pragma unroll
      for (int m = 0; m < M; ++m) multiply_add_pair<M, N>(c, m, n, a[m][k], right);
    }
}

/// An accumulator rounded to the left factor of the next product.
template <int M, int N>
__device__ __forceinline__ void round_to_left(const Accumulator<M, N>& c,
                                              std::uint32_t (&a)[M][N / 2][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int k = 0; k < N / 2; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[m][k][i] =
            pack_bfloat16(c[m][2 * k + i / 2][i % 2 * 2], c[m][2 * k + i / 2][i % 2 * 2 + 1]);
}

/// Eight elements as one access moves them.
struct alignas(16) EightElements {
  bfloat16 x[8];
};
struct alignas(16) FourFloats {
  float x[4];
};

/// Begins to fill a tile with Rows rows; `row(i)` is where row i lies, null for zeros. Columns
/// behind `dim` become zero. `vectors` says whether rows may be read 16 bytes at a time.
template <int Rows, int Columns, int Threads, class Row>
__device__ __forceinline__ void load_tile(bfloat16* to, int dim, bool vectors, Row row) {
  constexpr int chunks = Columns / 8, all = Rows * chunks;
  if (vectors) {
#pragma unroll
    for (int at = 0; at < all; at += Threads) {
      const int i = at + int(threadIdx.x) % Threads, column = i % chunks * 8;
      if (all % Threads != 0 && i >= all) break;
      const bfloat16* const from = row(i / chunks);
      const bool some = from != nullptr && column < dim;
      copy_async_16(to + i / chunks * tile_stride<Columns> + column, some ? from + column : nullptr,
                    some ? 16 : 0);
    }
    return;
  }
#pragma unroll 1
  for (int i = int(threadIdx.x) % Threads; i < Rows * Columns; i += Threads) {
    const bfloat16* const from = row(i / Columns);
    const int column = i % Columns;
    to[i / Columns * tile_stride<Columns> + column] =
        from != nullptr && column < dim ? from[column] : bfloat16{};
  }
}

/// to(row i) += scale * staged(row i), by Threads consecutive threads.     staged (Rows, Columns)
template <int Rows, int Columns, int Threads, class Row>
__device__ __forceinline__ void add_tile(const float* staged, int stride, int dim, bool vectors,
                                         float scale, Row row) {
  if (!vectors) {
    for (int i = int(threadIdx.x) % Threads; i < Rows * Columns; i += Threads) {
      bfloat16* const to = row(i / Columns);
      const int column = i % Columns;
      if (to != nullptr && column < dim)
        to[column] = bfloat16(float(to[column]) + scale * staged[i / Columns * stride + column]);
    }
    return;
  }
  constexpr int chunks = Columns / 8;
  for (int i = int(threadIdx.x) % Threads; i < Rows * chunks; i += Threads) {
    const int column = i % chunks * 8;
    bfloat16* const start = row(i / chunks);
    if (start == nullptr || column >= dim) continue;
    const float* const from = staged + i / chunks * stride + column;
    auto& to = *reinterpret_cast<EightElements*>(start + column);
    EightElements sum = to;
#pragma unroll
    for (int j = 0; j < 8; ++j) sum.x[j] = bfloat16(float(sum.x[j]) + scale * from[j]);
    to = sum;
  }
}

/// Each of the four lanes of a row has a part of four pieces and gets all parts of one, the piece
/// with its number among them.
template <class T>
__device__ __forceinline__ void gather_piece(T (&x)[4]) {
  const auto exchange = [&](int lanes, T& low, T& high) {
    const bool upper = (lane_index() & lanes) != 0;
    const T got = __shfl_xor_sync(whole_warp, upper ? low : high, lanes);
    (upper ? low : high) = got;
  };
  exchange(1, x[0], x[1]);
  exchange(1, x[2], x[3]);
  exchange(2, x[0], x[2]);
  exchange(2, x[1], x[3]);
}

/// Eight neighbouring columns of a lane's row, those of piece first + lane % 4.
template <int M, int N>
__device__ __forceinline__ void gather_columns(const Accumulator<M, N>& c, int m, int half,
                                               int first, float (&to)[8]) {
  float even[4], odd[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    even[i] = c[m][first + i][half * 2];
    odd[i] = c[m][first + i][half * 2 + 1];
  }
  gather_piece(even);
  gather_piece(odd);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[2 * i] = even[i], to[2 * i + 1] = odd[i];
}

/// to += scale * c for the two rows of an accumulator that this lane shares with three others, as
/// far as they have columns; null for a row that is not there. Their addresses are multiples of 16.
template <int N>
__device__ __forceinline__ void add_columns(const Accumulator<1, N>& c, float scale,
                                            bfloat16* const (&to)[2], int columns) {
  EightElements sum[2][N / 4];
  const auto each = [&](auto f) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int piece = 0; piece < N; piece += 4) {
        const int column = (piece + lane_index() % 4) * 8;
        const bool here = to[half] != nullptr && column < columns;
        f(half, piece, here ? reinterpret_cast<EightElements*>(to[half] + column) : nullptr);
      }
  };
  each([&](int half, int piece, const EightElements* place) {  // all reads before the first write
    if (place != nullptr) sum[half][piece / 4] = *place;
  });
  each([&](int half, int piece, EightElements* place) {
    float x[8];
    gather_columns<1, N>(c, 0, half, piece, x);
    if (place == nullptr) return;
    EightElements& all = sum[half][piece / 4];
#pragma unroll
    for (int i = 0; i < 8; ++i) all.x[i] = bfloat16(float(all.x[i]) + scale * x[i]);
    *place = all;
  });
}

/// to = scale * one such row, of all columns.
template <int M, int N>
__device__ __forceinline__ void store_columns(const Accumulator<M, N>& c, int half, float scale,
                                              float* to) {
#pragma unroll
  for (int piece = 0; piece < N; piece += 4) {
    float x[8];
    gather_columns<M, N>(c, 0, half, piece, x);
    if (to == nullptr) continue;
    FourFloats* const place = reinterpret_cast<FourFloats*>(to + (piece + lane_index() % 4) * 8);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] *= scale;
    place[0] = {{x[0], x[1], x[2], x[3]}};
    place[1] = {{x[4], x[5], x[6], x[7]}};
  }
}

/// An accumulator laid out row by row in shared memory.
template <int Columns, int M, int N>
__device__ __forceinline__ void lay_out(const Accumulator<M, N>& c, float* to) {
  to += lane_index() / 4 * tile_stride<Columns> + lane_index() % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to[(m * 16 + i / 2 * 8) * tile_stride<Columns> + n * 8 + i % 2] = c[m][n][i];
}

}  // namespace dflash::cuda
