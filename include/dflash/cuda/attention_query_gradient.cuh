#pragma once

#include <cmath>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_tile.cuh"
#include "dflash/cuda/fragments.cuh"

namespace dflash::cuda {

/// How the gradient of the queries is cut, for a head of up to D elements.
template <int D>
struct QueryGradientCut {
  static constexpr int row_tiles = D > 128 ? 1 : 2, warps = 4, threads = warps * warp_size;
  static constexpr int warp_rows = 16 * row_tiles, rows = warps * warp_rows;
  static constexpr int keys = 32;

  struct Shared {
    alignas(128) bfloat16 q[rows * tile_stride<D>], dy[rows * tile_stride<D>];
    KeyStage<keys, D> stage[2];
    float lse[rows], delta[rows];
    TileKeys<rows> tile;
    KeyTiles<keys> tiles;
    QueryTile query_tile;  // for the end, when registers are free again
    WarpKeys warp_keys[warps][2];

    /// In the place of q and dy, once they are done with.
    __device__ float* dq() { return reinterpret_cast<float*>(q); }
  };
};

/// What the exponents of a row's probabilities, of base 2, are counted from. A row that sees no key
/// has an lse of -infinity; any finite number serves it.
__device__ __forceinline__ float base_of(float lse) { return lse == -INFINITY ? 0 : lse * log2_e; }

/// Scores become the probabilities 2^(scale score - base), and dp becomes p (dp - mean), 0 where p
/// is.
template <int M, int N>
__device__ __forceinline__ void softmax_backward(Accumulator<M, N>& p, Accumulator<M, N>& dp,
                                                 float scale, const float (&base)[M][2],
                                                 const float (&mean)[M][2]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = exp2_fast(p[m][n][i] * scale - base[m][i / 2]);
        float& d = dp[m][n][i];
        d = weight != 0 ? weight * (d - mean[m][i / 2]) : 0;
      }
}

/// A number for each of the rows of a warp's accumulator that this lane holds.
template <int M>
__device__ __forceinline__ void of_rows(const float* all, float (&to)[M][2]) {
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) to[i / 2][i % 2] = all[i * 8 + lane_index() / 4];
}

/// dq += scale (p (dy v^T - delta)) k: one block per tile of query rows and key/value head, over
/// the keys that the tile sees.
template <int D>
__global__ void __launch_bounds__(QueryGradientCut<D>::threads, 2)
    attention_query_gradient_kernel(AttentionShape a, const bfloat16* q,
                                    KeyValue<const bfloat16> kv, const float* lse,
                                    const float* delta, const bfloat16* dy, bfloat16* dq) {
  using Cut = QueryGradientCut<D>;
  constexpr int M = Cut::row_tiles, N = Cut::keys / 8;
  auto& shared = *shared_memory<typename Cut::Shared>();
  const int kv_head = int(blockIdx.y), begin = int(gridDim.x - 1 - blockIdx.x) * Cut::rows;
  const QueryTile tile(a, HeadsOfKey(a, kv_head), begin, Cut::rows);
  if (tile.size <= 0) return;
  const int warp = int(threadIdx.x) / warp_size, first = warp * Cut::warp_rows;

  shared.tile.fill(a, tile);
  if (threadIdx.x == 0) shared.query_tile = tile;
  const auto load_rows = [&](bfloat16* to, const bfloat16* from) {
    load_tile<Cut::rows, D, Cut::threads>(to, a.dim, a.vectors, [&](int i) {
      return i < tile.size ? from + tile.source(i) * a.dim : nullptr;
    });
  };
  load_rows(shared.q, q);
  load_rows(shared.dy, dy);
  if (const int i = int(threadIdx.x); i < Cut::rows) {
    const index_t at = tile.source(min(i, tile.size - 1));
    shared.lse[i] = base_of(lse[at]);
    shared.delta[i] = delta[at];
  }
  __syncthreads();
  if (warp == 0) shared.tiles.start(shared.tile);
  fill_warp_keys(shared.warp_keys[warp], shared.tile.seen, tile, first, Cut::warp_rows);
  __syncthreads();

  const auto load = [&](int turn) {
    shared.stage[turn % 2].template load<Cut::threads>(a, kv_head, shared.tiles[turn], kv);
  };
  Accumulator<M, D / 8> sum;
  clear<M, D / 8>(sum);
  const float scale = a.scale * log2_e;
  load(0);
  for (int turn = 0; shared.tiles[turn].exists(); ++turn) {
    copy_async_wait<0>();
    __syncthreads();
    load(turn + 1);
    if (warp == turn % Cut::warps) shared.tiles.find(turn + 2, shared.tile);
    const KeyTile& now = shared.tiles[turn];
    const WarpKeys& keys = shared.warp_keys[warp][now.own ? 1 : 0];
    if (!keys.sees(now)) continue;
    const auto& stage = shared.stage[turn % 2];
    Accumulator<M, N> p, dp;  // p: scores first
    clear<M, N>(p);
    clear<M, N>(dp);
    multiply_rows<D, M, N>(p, shared.q + first * tile_stride<D>, stage.k);
    multiply_rows<D, M, N>(dp, shared.dy + first * tile_stride<D>, stage.v);
    if (!keys.sees_all(now, Cut::keys)) hide<M, N>(p, shared.tile.seen + first, now);
    float base[M][2], mean[M][2];
    of_rows<M>(shared.lse + first, base);
    of_rows<M>(shared.delta + first, mean);
    softmax_backward<M, N>(p, dp, scale, base, mean);
    std::uint32_t ds[M][N / 2][4];
    round_to_left<M, N>(dp, ds);
    multiply_columns<D, M, N / 2, D / 8>(sum, ds, stage.k);
  }
  copy_async_wait<0>();
  __syncthreads();
  lay_out<D, M, D / 8>(sum, shared.dq() + first * tile_stride<D>);
  __syncthreads();
  const QueryTile& rows = shared.query_tile;
  add_tile<Cut::rows, D, Cut::threads>(
      shared.dq(), tile_stride<D>, a.dim, a.vectors, a.scale,
      [&](int i) { return i < rows.size ? dq + rows.source(i) * a.dim : nullptr; });
}

}  // namespace dflash::cuda
