#pragma once

#include <cmath>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_tile.cuh"

namespace dflash::cuda {

/// How attention in float is cut: plain fused multiply-adds, for checks rather than for speed. A
/// thread computes scores of two rows and four keys, and a quarter of the columns of one row.
struct FloatCut {
  static constexpr int threads = 128, rows = 32, keys = 32;
  static constexpr int score_stride = keys + 1;
};

/// Rows of up to D elements in shared memory; the odd stride keeps a column in different banks.
template <int D>
inline constexpr int float_stride = D + 1;

/// Calls f with the head size that a float kernel is compiled for and that holds `dim`, as a type.
template <class F>
void with_float_head_size(int dim, F&& f) {
  if (dim <= 64) return f(std::integral_constant<int, 64>());
  if (dim <= 128) return f(std::integral_constant<int, 128>());
  f(std::integral_constant<int, 256>());
}

/// Fills 32 rows of `dim` elements; `row(i)` is where row i lies, null for zeros.
template <int D, class Row>
__device__ __forceinline__ void load_float_tile(float* to, int dim, Row row) {
  for (int i = int(threadIdx.x) / 32; i < 32; i += FloatCut::threads / 32) {
    const float* const from = row(i);
    for (int c = int(threadIdx.x) % 32; c < dim; c += 32)
      to[i * float_stride<D> + c] = from != nullptr ? from[c] : 0;
  }
}

/// Which scores a thread computes.
__device__ __forceinline__ int score_row(int i) { return int(threadIdx.x) / 8 * 2 + i; }
__device__ __forceinline__ int score_column(int j) { return int(threadIdx.x) % 8 + 8 * j; }

/// c = a b^T, a thread's part.                                        a, b (32, dim)
template <int D>
__device__ __forceinline__ void multiply_float_rows(float (&c)[2][4], const float* a,
                                                    const float* b, int dim) {
  for (auto& row : c)
    for (float& x : row) x = 0;
  for (int d = 0; d < dim; ++d) {
    float right[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) right[j] = b[score_column(j) * float_stride<D> + d];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float left = a[score_row(i) * float_stride<D> + d];
#pragma unroll
      for (int j = 0; j < 4; ++j) c[i][j] = fmaf(left, right[j], c[i][j]);
    }
  }
}

/// sum(c) += weight * row(c) for a thread's quarter of the columns.
template <int D>
__device__ __forceinline__ void add_weighted(float (&sum)[D / 4], float weight, const float* row,
                                             int dim) {
  const int column = int(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < D / 4; ++j)
    if (4 * j + column < dim) sum[j] = fmaf(weight, row[4 * j + column], sum[j]);
}

template <int D>
struct FloatForwardShared {
  float q[FloatCut::rows * float_stride<D>], k[FloatCut::keys * float_stride<D>],
      v[FloatCut::keys * float_stride<D>], score[FloatCut::rows * FloatCut::score_stride];
  TileKeys<FloatCut::rows> tile;
  KeyTiles<FloatCut::keys> tiles;
};

/// As the kernel for bfloat16, in float.
template <int D>
__global__ void __launch_bounds__(FloatCut::threads)
    attention_float_kernel(AttentionShape a, const float* q, KeyValue<const float> kv, float* y,
                           float* lse) {
  using Cut = FloatCut;
  auto& shared = *shared_memory<FloatForwardShared<D>>();
  const int kv_head = int(blockIdx.y), begin = int(gridDim.x - 1 - blockIdx.x) * Cut::rows;
  const QueryTile tile(a, HeadsOfKey(a, kv_head), begin, Cut::rows);
  if (tile.size <= 0) return;
  shared.tile.fill(a, tile);
  load_float_tile<D>(shared.q, a.dim,
                     [&](int i) { return i < tile.size ? q + tile.source(i) * a.dim : nullptr; });
  __syncthreads();

  const int row = int(threadIdx.x) / 4, quarter = int(threadIdx.x) % 4;
  float* const scores = shared.score + row * Cut::score_stride;
  float out[D / 4] = {}, top = -INFINITY, sum = 0;
  const int warp = int(threadIdx.x) / warp_size;
  if (warp == 0) shared.tiles.start(shared.tile);
  __syncthreads();
  for (int turn = 0; shared.tiles[turn].exists(); ++turn) {
    const KeyTile& now = shared.tiles[turn];
    if (warp == turn % (Cut::threads / warp_size)) shared.tiles.find(turn + 2, shared.tile);
    const auto load = [&](float* to, const float* from) {
      load_float_tile<D>(to, a.dim, [&](int i) {
        const int key = now.start + i;
        const bool here = key >= now.first && key < now.stop;
        return here ? from + (index_t(key) * a.kv_heads + kv_head) * a.dim : nullptr;
      });
    };
    load(shared.k, now.own ? kv.k_block.data : kv.k_context.data);
    load(shared.v, now.own ? kv.v_block.data : kv.v_context.data);
    __syncthreads();
    float score[2][4];
    multiply_float_rows<D>(score, shared.q, shared.k, a.dim);
    for (int i = 0; i < 2; ++i) {
      const KeyRange seen = shared.tile.seen[score_row(i)].of(now.own);
      for (int j = 0; j < 4; ++j) {
        const int key = now.start + score_column(j);
        const bool here = key >= seen.begin && key < min(seen.end, now.stop);
        shared.score[score_row(i) * Cut::score_stride + score_column(j)] =
            here ? score[i][j] * a.scale : -INFINITY;
      }
    }
    __syncthreads();
    float largest = top;
    for (int j = 0; j < Cut::keys; ++j) largest = fmaxf(largest, scores[j]);
    __syncwarp();
    // A row that has seen no key has a top of -infinity; any finite number serves it.
    const float base = largest == -INFINITY ? 0 : largest, shrink = expf(top - base);
    for (int j = quarter; j < Cut::keys; j += 4) scores[j] = expf(scores[j] - base);
    __syncwarp();
    top = largest;
    sum *= shrink;
    for (float& x : out) x *= shrink;
    for (int j = 0; j < Cut::keys; ++j) {
      sum += scores[j];
      add_weighted<D>(out, scores[j], shared.v + j * float_stride<D>, a.dim);
    }
    __syncthreads();
  }
  if (row >= tile.size) return;
  const index_t at = tile.source(row);
  const float share = sum > 0 ? 1 / sum : 0;
#pragma unroll
  for (int j = 0; j < D / 4; ++j)
    if (4 * j + quarter < a.dim) y[at * a.dim + 4 * j + quarter] = out[j] * share;
  if (quarter == 0) lse[at] = top + logf(sum);
}

inline void launch_attention_float(CudaBackend<float>& backend, const AttentionPlan<float>& plan,
                                   const float* q, KeyValue<const float> kv, float* y, float* lse) {
  with_float_head_size(plan.shape().dim, [&](auto size) {
    constexpr int D = size.value;
    launch(backend.stream(), attention_float_kernel<D>,
           dim3(plan.query_tiles(FloatCut::rows), plan.used_kv_heads()), FloatCut::threads,
           sizeof(FloatForwardShared<D>), plan.shape(), q, kv, y, lse);
  });
}

}  // namespace dflash::cuda
