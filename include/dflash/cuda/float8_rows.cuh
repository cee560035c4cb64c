#pragma once

#include <cstdint>

#include "dflash/core/float8.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/vector.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash::cuda {

/// n, up to whole vectors of float8: what their products need of columns and depth.
DFLASH_HOST_DEVICE inline index_t padded_float8(index_t n) { return (n + 15) / 16 * 16; }

namespace detail {

inline constexpr unsigned float8_threads = 256;

/// What numbers up to `largest` are divided by to become float8, and multiplied by afterwards.
/// Those too small for a scale become zeros, an infinity becomes NaN.
__device__ __forceinline__ float float8_scale(float largest) {
  constexpr float smallest_normal = 0x1p-126f;
  const float scale = largest / float8_e4m3::largest;
  return scale >= smallest_normal ? scale : 1.0f;
}

/// One block per row of q; rows and columns that x does not have become zeros.
///                                                  x (rows, dim)  q (., width)  scale (.)
template <class T>
__global__ void __launch_bounds__(float8_threads)
    quantize_rows_kernel(const T* x, index_t rows, index_t dim, float8_e4m3* q, index_t width,
                         float* scale) {
  const index_t n = blockIdx.x;
  const T* const row = x + n * dim;
  const index_t here = n < rows ? dim : 0;
  float largest = 0;
  for (index_t d = threadIdx.x; d < here; d += blockDim.x)
    largest = fmaxf(largest, fabsf(to_float(row[d])));
  const float by = float8_scale(block_max(largest, shared_memory<float>()));
  const auto at = [&](index_t d) { return d < here ? to_float(row[d]) / by : 0.0f; };
  auto* const to = reinterpret_cast<std::uint32_t*>(q + n * width);
  for (index_t d = 4 * index_t(threadIdx.x); d < width; d += 4 * index_t(blockDim.x))
    to[d / 4] = pack_float8(at(d), at(d + 1), at(d + 2), at(d + 3));
  if (threadIdx.x == 0) scale[n] = by;
}

inline constexpr int square = 32;  // words and columns that are turned at once
inline constexpr std::size_t turn_bytes = std::size_t(square) * (square + 1) * sizeof(float);

/// Tile blockIdx.y of the rows of w, transposed: 32 of its columns per block, a scale for each.
///                          w (rows, dim)  q, of a tile (width, its words)  scale (tiles, width)
template <class T>
__global__ void __launch_bounds__(float8_threads)
    quantize_columns_kernel(const T* w, index_t rows, index_t dim, index_t tile, float8_e4m3* q,
                            index_t width, float* scale) {
  float* const part = shared_memory<float>();  // (32, 33): bank conflicts neither way
  const int column = int(threadIdx.x) % square, line = int(threadIdx.x) / square,
            lines = int(blockDim.x) / square;
  const index_t first = index_t(blockIdx.y) * tile, d = index_t(blockIdx.x) * square;
  const index_t all = padded_float8(rows - first), words = all < tile ? all : tile,
                here = rows - first < words ? rows - first : words;
  const auto at = [&](index_t j) {
    return j < here && d + column < dim ? to_float(w[(first + j) * dim + d + column]) : 0.0f;
  };
  float largest = 0;
  for (index_t j = line; j < here; j += lines) largest = fmaxf(largest, fabsf(at(j)));
  part[line * square + column] = largest;
  __syncthreads();
  for (int other = 0; other < lines; ++other)
    largest = fmaxf(largest, part[other * square + column]);
  const float by = float8_scale(largest);
  if (line == 0 && d + column < width) scale[index_t(blockIdx.y) * width + d + column] = by;

  const int turned = int(threadIdx.x) / (square / 4), four = int(threadIdx.x) % (square / 4) * 4;
  float8_e4m3* const to = q + first * width + (d + turned) * words;
  for (index_t j = 0; j < words; j += square) {
    __syncthreads();
    for (int i = line; i < square; i += lines) part[i * (square + 1) + column] = at(j + i) / by;
    __syncthreads();
    if (d + turned >= width || j + four >= words) continue;
    const auto from = [&](int i) { return part[(four + i) * (square + 1) + turned]; };
    *reinterpret_cast<std::uint32_t*>(to + j + four) =
        pack_float8(from(0), from(1), from(2), from(3));
  }
}

}  // namespace detail

/// q(n) = x(n) / scale(n), rounded to nearest even, with the scale that brings the row's largest
/// to float8's; behind x's columns and rows zeros.
///                           x (N, C)  q (>= N, C padded)  scale, as many as rows of q
template <class T>
void quantize_rows(CudaBackend<T>& backend, In<T, 2> x, Out<float8_e4m3, 2> q,
                   Out<float, 1> scale) {
  expects(q.shape[0] >= x.shape[0] && q.shape[1] == padded_float8(x.shape[1]) &&
              scale.shape[0] == q.shape[0],
          "quantize_rows: shapes differ");
  launch(backend.stream(), detail::quantize_rows_kernel<T>, unsigned(q.shape[0]),
         detail::float8_threads, 32 * sizeof(float), x.data, x.shape[0], x.shape[1], q.data,
         q.shape[1], scale.data);
}

}  // namespace dflash::cuda
