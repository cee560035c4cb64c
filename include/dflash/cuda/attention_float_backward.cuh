#pragma once

#include <algorithm>
#include <cmath>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_float.cuh"
#include "dflash/cuda/attention_key_gradient.cuh"

namespace dflash::cuda {

template <int D>
struct FloatBackwardShared {
  float q[FloatCut::rows * float_stride<D>], dy[FloatCut::rows * float_stride<D>],
      k[FloatCut::keys * float_stride<D>], v[FloatCut::keys * float_stride<D>];
  float p[FloatCut::rows * FloatCut::score_stride], ds[FloatCut::rows * FloatCut::score_stride];
  float lse[FloatCut::rows], delta[FloatCut::rows];
  KeyRange seen[FloatCut::rows];
  KeyRange warp_blocks[FloatCut::threads / warp_size];
  TileKeys<FloatCut::rows> tile;
  KeyTiles<FloatCut::keys> tiles;

  /// p and p (dp - delta) of a tile of keys from `first` on, 0 where hidden or from `stop` on.
  __device__ void scores(int dim, float scale, int first, int stop) {
    float s[2][4], dp[2][4];
    multiply_float_rows<D>(s, q, k, dim);
    multiply_float_rows<D>(dp, dy, v, dim);
    for (int i = 0; i < 2; ++i) {
      const int row = score_row(i);
      for (int j = 0; j < 4; ++j) {
        const int key = first + score_column(j), at = row * FloatCut::score_stride + key - first;
        const bool here = key >= seen[row].begin && key < min(seen[row].end, stop);
        p[at] = here ? expf(s[i][j] * scale - lse[row]) : 0;
        ds[at] = here ? p[at] * (dp[i][j] - delta[row]) : 0;
      }
    }
  }
};

/// dq += scale (p (dy v^T - delta)) k, in float.
template <int D>
__global__ void __launch_bounds__(FloatCut::threads)
    attention_float_query_gradient_kernel(AttentionShape a, const float* q,
                                          KeyValue<const float> kv, const float* lse,
                                          const float* delta, const float* dy, float* dq) {
  using Cut = FloatCut;
  auto& shared = *shared_memory<FloatBackwardShared<D>>();
  const int kv_head = int(blockIdx.y), begin = int(gridDim.x - 1 - blockIdx.x) * Cut::rows;
  const QueryTile tile(a, HeadsOfKey(a, kv_head), begin, Cut::rows);
  if (tile.size <= 0) return;
  shared.tile.fill(a, tile);
  const auto load_rows = [&](float* to, const float* from) {
    load_float_tile<D>(
        to, a.dim, [&](int i) { return i < tile.size ? from + tile.source(i) * a.dim : nullptr; });
  };
  load_rows(shared.q, q);
  load_rows(shared.dy, dy);
  if (const int i = int(threadIdx.x); i < Cut::rows) {
    const index_t at = tile.source(min(i, tile.size - 1));
    shared.lse[i] = lse[at];
    shared.delta[i] = delta[at];
  }
  __syncthreads();

  const int row = int(threadIdx.x) / 4, quarter = int(threadIdx.x) % 4;
  float sum[D / 4] = {};
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
    if (const int i = int(threadIdx.x); i < Cut::rows)
      shared.seen[i] = shared.tile.seen[i].of(now.own);
    __syncthreads();
    shared.scores(a.dim, a.scale, now.start, now.stop);
    __syncthreads();
    for (int j = 0; j < Cut::keys; ++j)
      add_weighted<D>(sum, shared.ds[row * Cut::score_stride + j], shared.k + j * float_stride<D>,
                      a.dim);
    __syncthreads();
  }
  if (row >= tile.size) return;
  float* const to = dq + tile.source(row) * a.dim;
#pragma unroll
  for (int j = 0; j < D / 4; ++j)
    if (4 * j + quarter < a.dim) to[4 * j + quarter] += a.scale * sum[j];
}

/// dv += p^T dy and dk += scale (p (dy v^T - delta))^T q, in float.
template <int D>
__global__ void __launch_bounds__(FloatCut::threads)
    attention_float_key_gradient_kernel(AttentionShape a, const float* q, KeyValue<const float> kv,
                                        const float* lse, const float* delta, const float* dy,
                                        KeyValue<float> dkv) {
  using Cut = FloatCut;
  auto& shared = *shared_memory<FloatBackwardShared<D>>();
  const KeyGradientTile tile(a, int(blockIdx.y), int(blockIdx.x), Cut::keys, 1);
  const int kv_head = int(blockIdx.y);
  const KeyRange pairs = tile.pairs(a, shared.warp_blocks);
  if (pairs.begin >= pairs.end) return;
  const auto load_keys = [&](float* to, const float* from) {
    load_float_tile<D>(to, a.dim, [&](int i) {
      const int key = tile.begin + i;
      return key < tile.end ? from + (index_t(key) * a.kv_heads + kv_head) * a.dim : nullptr;
    });
  };
  load_keys(shared.k, tile.own ? kv.k_block.data : kv.k_context.data);
  load_keys(shared.v, tile.own ? kv.v_block.data : kv.v_context.data);

  const int key = int(threadIdx.x) / 4, quarter = int(threadIdx.x) % 4;
  float dk_sum[D / 4] = {}, dv_sum[D / 4] = {};
  for (int at = tile.next(a, pairs.begin, pairs.end); at < pairs.end;
       at = tile.next(a, at + Cut::rows, pairs.end)) {
    const QueryTile queries(a, tile.heads, at, min(Cut::rows, pairs.end - at));
    const auto load_rows = [&](float* to, const float* from) {
      load_float_tile<D>(to, a.dim, [&](int i) {
        return i < queries.size ? from + queries.source(i) * a.dim : nullptr;
      });
    };
    load_rows(shared.q, q);
    load_rows(shared.dy, dy);
    if (const int i = int(threadIdx.x); i < Cut::rows) {
      const bool here = i < queries.size;
      shared.seen[i] = here ? a.seen[queries.row_of(i)].of(tile.own) : KeyRange{0, 0};
      shared.lse[i] = here ? lse[queries.source(i)] : 0;
      shared.delta[i] = here ? delta[queries.source(i)] : 0;
    }
    __syncthreads();
    shared.scores(a.dim, a.scale, tile.begin, tile.end);
    __syncthreads();
    for (int i = 0; i < Cut::rows; ++i) {
      add_weighted<D>(dk_sum, shared.ds[i * Cut::score_stride + key],
                      shared.q + i * float_stride<D>, a.dim);
      add_weighted<D>(dv_sum, shared.p[i * Cut::score_stride + key],
                      shared.dy + i * float_stride<D>, a.dim);
    }
    __syncthreads();
  }
  if (tile.begin + key >= tile.end) return;
  const index_t to = (index_t(tile.begin + key) * a.kv_heads + kv_head) * a.dim;
  float* const dk = (tile.own ? dkv.k_block : dkv.k_context).data + to;
  float* const dv = (tile.own ? dkv.v_block : dkv.v_context).data + to;
#pragma unroll
  for (int j = 0; j < D / 4; ++j)
    if (const int c = 4 * j + quarter; c < a.dim) {
      dk[c] += a.scale * dk_sum[j];
      dv[c] += dv_sum[j];
    }
}

inline void launch_attention_float_backward(CudaBackend<float>& backend,
                                            const AttentionPlan<float>& plan, const float* q,
                                            KeyValue<const float> kv, const float* lse,
                                            const float* delta, const float* dy, float* dq,
                                            KeyValue<float> dkv) {
  with_float_head_size(plan.shape().dim, [&](auto size) {
    constexpr int D = size.value;
    const AttentionShape& a = plan.shape();
    const std::size_t bytes = sizeof(FloatBackwardShared<D>);
    launch(backend.stream(), attention_float_query_gradient_kernel<D>,
           dim3(plan.query_tiles(FloatCut::rows), plan.used_kv_heads()), FloatCut::threads, bytes,
           a, q, kv, lse, delta, dy, dq);
    launch(backend.stream(), attention_float_key_gradient_kernel<D>,
           dim3(plan.key_tiles(FloatCut::keys, 1), plan.used_kv_heads()), FloatCut::threads, bytes,
           a, q, kv, lse, delta, dy, dkv);
  });
}

}  // namespace dflash::cuda
