#pragma once

#include <cmath>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_tile.cuh"
#include "dflash/cuda/fragments.cuh"

namespace dflash::cuda {

/// How forward is cut, for a head of up to D elements: a warp holds the scores and the output of 16
/// * row_tiles query rows, and reads each key and value from shared memory once for all of them.
template <int D>
struct ForwardCut {
  static constexpr int row_tiles = D > 128 ? 1 : 2, warps = 4, threads = warps * warp_size;
  static constexpr int warp_rows = 16 * row_tiles, rows = warps * warp_rows;
  static constexpr int keys = D > 64 ? 32 : 64;

  struct Shared {
    alignas(128) bfloat16 q[rows * tile_stride<D>];
    KeyStage<keys, D> stage[2];
    TileKeys<rows> tile;
    KeyTiles<keys> tiles;
    WarpKeys warp_keys[warps][2];
  };
};

/// The softmax of a stream of scores (arXiv:2205.14135), for the rows of a warp. A lane holds two
/// rows of each 16; its sums are over its own columns until the end.
template <int M>
struct RunningSoftmax {
  float top[M][2], sum[M][2];

  __device__ RunningSoftmax() {
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) top[i / 2][i % 2] = -INFINITY, sum[i / 2][i % 2] = 0;
  }

  /// Scores become 2^(scale (score - top)) with the largest score so far as top, to which `shrink`
  /// scales what was summed before. Whether nothing in this warp needs that: most often, for the
  /// largest score comes early.
  template <int N>
  __device__ __forceinline__ bool weigh(Accumulator<M, N>& score, float scale,
                                        float (&shrink)[M][2]) {
    bool same = true;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = top[m][half];
#pragma unroll
        for (int n = 0; n < N; ++n)
          largest = fmaxf(largest, fmaxf(score[m][n][half * 2], score[m][n][half * 2 + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(whole_warp, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(whole_warp, largest, 2));
        // A row that has seen no key has a top of -infinity; any finite number serves it.
        const float base = largest == -INFINITY ? 0 : largest * scale;
        // Of an unchanged top the difference is what the product was rounded by, not 0: with one
        // factor a tile a sum of many tiles would drift.
        const bool as_before = top[m][half] == largest;
        shrink[m][half] = as_before ? 1.0f : exp2_fast(top[m][half] * scale - base);
        same = same && as_before;
        top[m][half] = largest;
        float total = 0;
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& s = score[m][n][half * 2 + i];
            s = exp2_fast(s * scale - base);
            total += s;
          }
        sum[m][half] = sum[m][half] * shrink[m][half] + total;
      }
    return __all_sync(whole_warp, same);
  }

  template <int Columns>
  static __device__ __forceinline__ void scale_rows(Accumulator<M, Columns>& y,
                                                    const float (&shrink)[M][2]) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < Columns; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) y[m][n][i] *= shrink[m][i / 2];
  }

  __device__ void finish() {
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      float& s = sum[i / 2][i % 2];
      s += __shfl_xor_sync(whole_warp, s, 1);
      s += __shfl_xor_sync(whole_warp, s, 2);
    }
  }
};

/// Stores a warp's rows of the output and their lse. The output goes through memory of the warp's
/// own, Stride elements a row.
template <int D, int M, int Stride>
__device__ __forceinline__ void store_rows(const Accumulator<M, D / 8>& y,
                                           const RunningSoftmax<M>& softmax, bfloat16* staged,
                                           const QueryTile& tile, int first,
                                           const AttentionShape& a, bfloat16* to, float* lse) {
  const int row = lane_index() / 4, column = lane_index() % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = softmax.sum[m][half], share = sum > 0 ? 1 / sum : 0;
      const int i = m * 16 + half * 8 + row;
      if (column == 0 && first + i < tile.size)
        lse[tile.source(first + i)] = softmax.top[m][half] * a.scale + logf(sum);
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        *reinterpret_cast<std::uint32_t*>(staged + i * Stride + n * 8 + column) =
            pack_bfloat16(y[m][n][half * 2] * share, y[m][n][half * 2 + 1] * share);
    }
  __syncwarp();
  constexpr int chunks = D / 8;
  for (int i = lane_index(); i < 16 * M * chunks; i += warp_size) {
    const int r = i / chunks, c = i % chunks * 8;
    if (first + r >= tile.size || c >= a.dim) continue;
    const bfloat16* const from = staged + r * Stride + c;
    bfloat16* const place = to + tile.source(first + r) * a.dim + c;
    if (a.vectors)
      *reinterpret_cast<EightElements*>(place) = *reinterpret_cast<const EightElements*>(from);
    else
      for (int j = 0; j < min(8, a.dim - c); ++j) place[j] = from[j];
  }
}

/// Stores what a warp's rows got of one part of the keys.
template <int D, int M>
__device__ __forceinline__ void store_part(const Accumulator<M, D / 8>& y,
                                           const RunningSoftmax<M>& softmax, const KeyParts& parts,
                                           int part, const QueryTile& tile, int first,
                                           const AttentionShape& a) {
  const int column = lane_index() % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = softmax.sum[m][half], share = sum > 0 ? 1 / sum : 0;
      const int i = first + m * 16 + half * 8 + lane_index() / 4;
      if (i >= tile.size) continue;
      const index_t at = index_t(part) * a.rows() * a.heads + tile.source(i);
      if (column == 0) parts.lse[at] = softmax.top[m][half] * a.scale + logf(sum);
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (const int c = n * 8 + column + j; c < a.dim)
            parts.y[at * a.dim + c] = y[m][n][half * 2 + j] * share;
    }
}

/// y and lse of all parts, one warp for each query row and head.
[[maybe_unused]] static __global__ void merge_parts_kernel(KeyParts parts, index_t rows, int dim,
                                                           bfloat16* y, float* lse) {
  const index_t row = (index_t(blockIdx.x) * blockDim.x + threadIdx.x) / warp_size;
  if (row >= rows) return;
  float top = -INFINITY, sum = 0;
  for (int part = 0; part < parts.count; ++part) top = fmaxf(top, parts.lse[part * rows + row]);
  const float base = top == -INFINITY ? 0 : top;
  for (int part = 0; part < parts.count; ++part) sum += expf(parts.lse[part * rows + row] - base);
  if (lane_index() == 0) lse[row] = top + logf(sum);
  const float share = sum > 0 ? 1 / sum : 0;
  for (int c = lane_index(); c < dim; c += warp_size) {
    float all = 0;
    for (int part = 0; part < parts.count; ++part)
      all += expf(parts.lse[part * rows + row] - base) * parts.y[(part * rows + row) * dim + c];
    y[row * dim + c] = bfloat16(all * share);
  }
}

/// One block per tile of query rows, key/value head and part of the keys. The next keys and values
/// are copied while these are multiplied.
template <int D>
__global__ void __launch_bounds__(ForwardCut<D>::threads, 2)
    attention_kernel(AttentionShape a, KeyParts parts, const bfloat16* q,
                     KeyValue<const bfloat16> kv, bfloat16* y, float* lse) {
  using Cut = ForwardCut<D>;
  constexpr int M = Cut::row_tiles, N = Cut::keys / 8;
  auto& shared = *shared_memory<typename Cut::Shared>();
  // Tiles further back see more keys: they go first, so that all multiprocessors end together.
  const int kv_head = int(blockIdx.y), begin = int(gridDim.x - 1 - blockIdx.x) * Cut::rows;
  const QueryTile tile(a, HeadsOfKey(a, kv_head), begin, Cut::rows);
  if (tile.size <= 0) return;
  const int warp = int(threadIdx.x) / warp_size, first = warp * Cut::warp_rows;

  shared.tile.fill(a, tile, parts, int(blockIdx.z));
  load_tile<Cut::rows, D, Cut::threads>(shared.q, a.dim, a.vectors, [&](int i) {
    return i < tile.size ? q + tile.source(i) * a.dim : nullptr;
  });
  __syncthreads();
  if (warp == 0) shared.tiles.start(shared.tile);
  fill_warp_keys(shared.warp_keys[warp], shared.tile.seen, tile, first, Cut::warp_rows);
  __syncthreads();

  const auto load = [&](int turn) {
    shared.stage[turn % 2].template load<Cut::threads>(a, kv_head, shared.tiles[turn], kv);
  };
  Accumulator<M, D / 8> out;
  clear<M, D / 8>(out);
  RunningSoftmax<M> softmax;
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
    Accumulator<M, N> score;
    clear<M, N>(score);
    multiply_rows<D, M, N>(score, shared.q + first * tile_stride<D>, stage.k);
    if (!keys.sees_all(now, Cut::keys)) hide<M, N>(score, shared.tile.seen + first, now);
    float shrink[M][2];
    if (!softmax.template weigh<N>(score, scale, shrink))
      softmax.template scale_rows<D / 8>(out, shrink);
    std::uint32_t p[M][N / 2][4];
    round_to_left<M, N>(score, p);
    multiply_columns<D, M, N / 2, D / 8>(out, p, stage.v);
  }

  copy_async_wait<0>();
  __syncthreads();
  softmax.finish();
  if (parts.keys > 0) return store_part<D, M>(out, softmax, parts, int(blockIdx.z), tile, first, a);
  store_rows<D, M, tile_stride<D>>(out, softmax, shared.q + first * tile_stride<D>, tile, first, a,
                                   y, lse);
}

inline constexpr int part_keys = 512;

/// One token or a few after many: so few blocks of threads would read the keys that memory waits
/// for them, and the keys are cut into parts. The parts do not depend on how many rows there are.
template <int D>
bool attends_in_parts(const AttentionPlan<bfloat16>& plan) {
  return plan.query_tiles(ForwardCut<D>::rows) == 1 && plan.shape().context_rows > part_keys;
}

/// The forward kernel for heads of up to D elements.
template <int D>
void launch_attention(CudaBackend<bfloat16>& backend, const AttentionPlan<bfloat16>& plan,
                      const bfloat16* q, KeyValue<const bfloat16> kv, bfloat16* y, float* lse) {
  using Cut = ForwardCut<D>;
  const AttentionShape& a = plan.shape();
  const index_t rows = index_t(a.block_count) * a.block_size * a.heads;
  KeyParts parts;
  typename CudaBackend<bfloat16>::template Buffer<float> part_y, part_lse;
  if (attends_in_parts<D>(plan)) {
    parts.keys = part_keys;
    parts.count = int(blocks_for(a.context_rows, part_keys));
    part_y = backend.template allocate<float>(parts.count * rows * a.dim);
    part_lse = backend.template allocate<float>(parts.count * rows);
    parts.y = part_y.data();
    parts.lse = part_lse.data();
  }
  launch(backend.stream(), attention_kernel<D>,
         dim3(plan.query_tiles(Cut::rows), plan.used_kv_heads(), unsigned(parts.count)),
         Cut::threads, sizeof(typename Cut::Shared), a, parts, q, kv, y, lse);
  if (parts.keys > 0)
    launch(backend.stream(), merge_parts_kernel, blocks_for(rows * warp_size, 128), 128, 0, parts,
           rows, a.dim, y, lse);
}

}  // namespace dflash::cuda
