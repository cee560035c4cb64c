#pragma once

#include <algorithm>
#include <type_traits>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_tile.cuh"
#include "dflash/cuda/fragments.cuh"

namespace dflash::cuda {

/// How the gradient of keys and values is cut, for a head of up to D elements: a warp holds that of
/// 16 keys, and the head's columns that do not fit its registers are another block's.
template <int D>
struct KeyGradientCut {
  static constexpr int warps = 4, threads = warps * warp_size, keys = 16 * warps;
  static constexpr int queries = D > 64 ? 32 : 64, columns = D > 128 ? 128 : D;

  struct Stage {
    bfloat16 q[queries * tile_stride<D>], dy[queries * tile_stride<D>];
    KeyRange seen[queries];
    float lse[queries], delta[queries];
  };
  struct Shared {
    alignas(128) bfloat16 k[keys * tile_stride<D>], v[keys * tile_stride<D>];
    Stage stage[2];
    KeyRange warp_blocks[warps];
    KeyGradientTile key_tile;  // for the end, when registers are free again

    /// In the place of k and v, once they are done with.
    __device__ float* sum() { return reinterpret_cast<float*>(k); }
  };
};

/// The query rows that see a tile of context keys are cut into parts where there are few tiles, so
/// that all multiprocessors have work; a second kernel adds the parts up, in their order.
struct KeyGradientParts {
  int most = 1, rows = 0;  // parts of a tile, and (query row, head) pairs of each
  float* sums = nullptr;   // (most, dk and dv, S, kv heads, D), if most > 1
  int* counts = nullptr;   // (tiles, kv heads): parts that there are

  __device__ float* at(int part, int which, const AttentionShape& a, int key, int kv_head,
                       int head_size) const {
    return sums + (((index_t(part) * 2 + which) * a.context_rows + key) * a.kv_heads + kv_head) *
                      head_size;
  }
};

/// p^T becomes the probability 2^(scale (score - lse)), 0 where the query does not see the key.
///                                                         keys in rows, queries in columns
template <int N>
__device__ __forceinline__ void probabilities(Accumulator<1, N>& p, float scale, const float* lse,
                                              const KeyRange* seen, int warp_key, int keys_begin,
                                              int keys) {
  const int column = lane_index() % 4 * 2, key = warp_key + lane_index() / 4;
  bool all_seen = true;
  for (int c = lane_index(); c < N * 8; c += warp_size)
    all_seen = all_seen && seen[c].begin <= keys_begin && seen[c].end >= keys_begin + keys;
  all_seen = __all_sync(whole_warp, all_seen);
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int c = n * 8 + column + i;
      const float base = lse[c] * log2_e;
      const KeyRange here = all_seen ? KeyRange{INT_MIN, INT_MAX} : seen[c];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& s = p[0][n][half * 2 + i];
        const int k = key + half * 8;
        s = k >= here.begin && k < here.end ? exp2_fast(s * scale - base) : 0;
      }
    }
}

/// dp becomes p (dp - delta), 0 where p is.
template <int N>
__device__ __forceinline__ void score_gradients(Accumulator<1, N>& dp, const Accumulator<1, N>& p,
                                                const float* delta) {
  const int column = lane_index() % 4 * 2;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float weight = p[0][n][i];
      dp[0][n][i] = weight != 0 ? weight * (dp[0][n][i] - delta[n * 8 + column + i % 2]) : 0;
    }
}

/// Adds a tile of dk (which = 0, not scaled yet) or dv to the whole, or stores it as one part of
/// it.
///                                                             staged (Keys, D)
template <int D, int Keys, int Columns, int Threads>
__device__ __forceinline__ void store_key_gradient(const float* staged, int which,
                                                   const AttentionShape& a,
                                                   const KeyGradientParts& parts,
                                                   const KeyGradientTile& tile, KeyRange keys,
                                                   int kv_head, int column,
                                                   const KeyValue<bfloat16>& dkv) {
  const float times = which == 0 ? a.scale : 1;
  if (parts.most > 1 && !tile.own) {
    for (int i = int(threadIdx.x) % Threads; i < Keys * Columns; i += Threads) {
      const int r = i / Columns, c = i % Columns;
      if (keys.begin + r < keys.end)
        parts.at(tile.part, which, a, keys.begin + r, kv_head, D)[column + c] =
            times * staged[r * tile_stride<D> + c];
    }
    return;
  }
  const View<bfloat16, 3> to = which == 0 ? (tile.own ? dkv.k_block : dkv.k_context)
                                          : (tile.own ? dkv.v_block : dkv.v_context);
  add_tile<Keys, Columns, Threads>(
      staged, tile_stride<D>, a.dim - column, a.vectors, times, [&](int i) {
        return keys.begin + i < keys.end
                   ? to.data + (index_t(keys.begin + i) * a.kv_heads + kv_head) * a.dim + column
                   : nullptr;
      });
}

/// The pairs of the tile's part; the block of threads that has the first part says how many there
/// are.
__device__ __forceinline__ KeyRange pairs_of_part(const KeyGradientTile& tile,
                                                  const KeyGradientParts& parts, KeyRange pairs,
                                                  int kv_head, int kv_heads) {
  if (parts.most == 1 || tile.own) return pairs;
  if (tile.part == 0 && blockIdx.z == 0 && threadIdx.x == 0)
    parts.counts[tile.index * kv_heads + kv_head] =
        (pairs.end - pairs.begin + parts.rows - 1) / parts.rows;
  const int begin = min(pairs.end, pairs.begin + tile.part * parts.rows);
  return {begin, min(pairs.end, begin + parts.rows)};
}

/// dv += p^T dy and dk += scale (p (dy v^T - delta))^T q: one block per tile of keys, key/value
/// head and part, over the query rows that see the tile.
template <int D>
__global__ void __launch_bounds__(KeyGradientCut<D>::threads, 2)
    attention_key_gradient_kernel(AttentionShape a, KeyGradientParts parts, const bfloat16* q,
                                  KeyValue<const bfloat16> kv, const float* lse, const float* delta,
                                  const bfloat16* dy, KeyValue<bfloat16> dkv) {
  using Cut = KeyGradientCut<D>;
  constexpr int N = Cut::queries / 8, C = Cut::columns / 8;
  auto& shared = *shared_memory<typename Cut::Shared>();
  const int kv_head = int(blockIdx.y), column = int(blockIdx.z) * Cut::columns;
  const int warp_key = int(threadIdx.x) / warp_size * 16;
  const KeyGradientTile tile(a, int(blockIdx.y), int(blockIdx.x), Cut::keys, parts.most);
  const KeyRange pairs =
      pairs_of_part(tile, parts, tile.pairs(a, shared.warp_blocks), kv_head, int(gridDim.y));
  if (pairs.begin >= pairs.end) return;
  if (threadIdx.x == 0) shared.key_tile = tile;

  const auto load = [&](typename Cut::Stage& to, int from) {
    if (from < pairs.end) {
      const QueryTile queries(a, tile.heads, from, min(Cut::queries, pairs.end - from));
      const auto rows = [&](bfloat16* place, const bfloat16* all) {
        load_tile<Cut::queries, D, Cut::threads>(place, a.dim, a.vectors, [&](int i) {
          return i < queries.size ? all + queries.source(i) * a.dim : nullptr;
        });
      };
      rows(to.q, q);
      rows(to.dy, dy);
      if (const int i = int(threadIdx.x); i < queries.size) {
        copy_async<8>(&to.seen[i], &a.seen[queries.row_of(i)].of(tile.own));
        copy_async<4>(&to.lse[i], lse + queries.source(i));
        copy_async<4>(&to.delta[i], delta + queries.source(i));
      } else if (i < Cut::queries) {
        to.seen[i] = {0, 0};
        to.lse[i] = to.delta[i] = 0;
      }
    }
    copy_async_commit();
  };
  const KeyTile keys{tile.begin, tile.begin, tile.end, tile.own};
  load_keys<Cut::keys, D, Cut::threads>(shared.k, a, kv_head, keys,
                                        tile.own ? kv.k_block.data : kv.k_context.data);
  load_keys<Cut::keys, D, Cut::threads>(shared.v, a, kv_head, keys,
                                        tile.own ? kv.v_block.data : kv.v_context.data);
  int at = tile.next(a, pairs.begin, pairs.end);
  load(shared.stage[0], at);
  Accumulator<1, C> dk, dv;
  clear<1, C>(dk);
  clear<1, C>(dv);
  const float scale = a.scale * log2_e;
  for (int turn = 0; at < pairs.end; turn ^= 1) {
    copy_async_wait<0>();
    __syncthreads();
    const int after = tile.next(a, at + Cut::queries, pairs.end);
    load(shared.stage[turn ^ 1], after);
    const auto& stage = shared.stage[turn];
    Accumulator<1, N> p, dp;
    clear<1, N>(p);
    multiply_rows<D, 1, N>(p, shared.k + warp_key * tile_stride<D>, stage.q);
    probabilities<N>(p, scale, stage.lse, stage.seen, tile.begin + warp_key, tile.begin, Cut::keys);
    std::uint32_t left[1][N / 2][4];
    round_to_left<1, N>(p, left);
    multiply_columns<D, 1, N / 2, C>(dv, left, stage.dy + column);
    clear<1, N>(dp);
    multiply_rows<D, 1, N>(dp, shared.v + warp_key * tile_stride<D>, stage.dy);
    score_gradients<N>(dp, p, stage.delta);
    round_to_left<1, N>(dp, left);
    multiply_columns<D, 1, N / 2, C>(dk, left, stage.q + column);
    at = after;
  }
  copy_async_wait<0>();
  __syncthreads();

#pragma unroll
  for (int which = 0; which < 2; ++which) {
    lay_out<D, 1, C>(which == 0 ? dk : dv, shared.sum() + warp_key * tile_stride<D>);
    __syncthreads();
    store_key_gradient<D, Cut::keys, Cut::columns, Cut::threads>(
        shared.sum(), which, a, parts, shared.key_tile,
        {shared.key_tile.begin, shared.key_tile.end}, int(blockIdx.y),
        int(blockIdx.z) * Cut::columns, dkv);
    __syncthreads();
  }
}

/// dkv += the sum of the parts, of one key, head and `each` columns a thread.
template <int D, int Keys, int each>
__global__ void add_key_gradients_kernel(AttentionShape a, KeyGradientParts parts,
                                         int used_kv_heads, KeyValue<bfloat16> dkv) {
  struct alignas(4 * each) Floats {
    float x[each];
  };
  struct alignas(2 * each) Elements {
    bfloat16 x[each];
  };
  const int columns = a.dim / each, i = int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x);
  const int column = i % columns * each, kv_head = i / columns % used_kv_heads;
  const int key = i / columns / used_kv_heads;
  if (key >= a.context_rows) return;
  const int count = parts.counts[key / Keys * used_kv_heads + kv_head];
  if (count == 0) return;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    Floats sum = {};
#pragma unroll 4
    for (int part = 0; part < count; ++part) {
      const Floats more =
          *reinterpret_cast<const Floats*>(parts.at(part, which, a, key, kv_head, D) + column);
#pragma unroll
      for (int j = 0; j < each; ++j) sum.x[j] += more.x[j];
    }
    const View<bfloat16, 3>& all = which == 0 ? dkv.k_context : dkv.v_context;
    Elements& to = *reinterpret_cast<Elements*>(
        all.data + (index_t(key) * a.kv_heads + kv_head) * a.dim + column);
    Elements result = to;
#pragma unroll
    for (int j = 0; j < each; ++j) result.x[j] = bfloat16(float(result.x[j]) + sum.x[j]);
    to = result;
  }
}

/// Into how many parts the gradient of the context's keys is cut, and the memory that takes.
class KeyGradientWork {
 public:
  KeyGradientWork(CudaBackend<bfloat16>& backend, const AttentionPlan<bfloat16>& plan, index_t keys,
                  index_t queries, index_t head_size) {
    // Four waves of two blocks for each of the multiprocessors of a large GPU; a number of the
    // problem's alone, so that results do not depend on the GPU.
    constexpr index_t wanted = 1024, most_parts = 8;
    const AttentionShape& a = plan.shape();
    const index_t tasks =
                      std::max<index_t>(1, blocks_for(a.context_rows, keys) * plan.used_kv_heads()),
                  query_tiles = plan.query_tiles(queries);
    parts_.most = int(std::max<index_t>(
        1, std::min({most_parts, (wanted + tasks - 1) / tasks, query_tiles / 2})));
    if (parts_.most == 1) return;
    sums_ = backend.template allocate<float>(2 * parts_.most * index_t(a.context_rows) *
                                             a.kv_heads * head_size);
    counts_ = backend.template allocate<int>(tasks);
    parts_.rows = int((query_tiles + parts_.most - 1) / parts_.most * queries);
    parts_.sums = sums_.data();
    parts_.counts = counts_.data();
  }

  const KeyGradientParts& parts() const { return parts_; }

  template <int D, int Keys>
  void add_up(CudaBackend<bfloat16>& backend, const AttentionPlan<bfloat16>& plan,
              const KeyValue<bfloat16>& dkv) const {
    const AttentionShape& a = plan.shape();
    if (parts_.most == 1) return;
    const auto add = [&](auto each) {
      launch(backend.stream(), add_key_gradients_kernel<D, Keys, each.value>,
             blocks_for(index_t(a.context_rows) * plan.used_kv_heads() * a.dim / each.value, 256),
             256, 0, a, parts_, int(plan.used_kv_heads()), dkv);
    };
    a.vectors ? add(std::integral_constant<int, 4>()) : add(std::integral_constant<int, 1>());
  }

 private:
  KeyGradientParts parts_;
  typename CudaBackend<bfloat16>::template Buffer<float> sums_;
  typename CudaBackend<bfloat16>::template Buffer<int> counts_;
};

}  // namespace dflash::cuda
