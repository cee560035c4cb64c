#pragma once

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_hopper_ring.cuh"
#include "dflash/cuda/attention_key_gradient.cuh"
#include "dflash/cuda/attention_query_gradient.cuh"

namespace dflash::cuda {

template <int D>
struct HopperQueryShared {
  using Cut = HopperCut<D>;
  bfloat16 q[Cut::groups * Cut::tile_size], dy[Cut::groups * Cut::tile_size];
  KeyRing<D> ring;
  float lse[Cut::rows], delta[Cut::rows];

  /// A group's 64 rows of dq, in the place of the ring's stages once all are done with.
  __device__ float* dq(int group) {
    static_assert(sizeof(ring.stage) >= sizeof(float) * Cut::rows * tile_stride<D>);
    return reinterpret_cast<float*>(ring.stage) + group * Cut::tile * tile_stride<D>;
  }
};

/// A group of warps that computes dq of 64 rows of the tile.
template <int D>
__device__ __forceinline__ void query_gradient(HopperQueryShared<D>& shared,
                                               const AttentionShape& a, const QueryTile& tile,
                                               int group, bfloat16* dq) {
  using Cut = HopperCut<D>;
  constexpr int N = Cut::tile / 8;
  const int warp = int(threadIdx.x) / warp_size % 4, first = group * Cut::tile + warp * 16;
  auto& ring = shared.ring;
  const bfloat16* const q = shared.q + group * Cut::tile_size;
  const bfloat16* const dy = shared.dy + group * Cut::tile_size;
  Accumulator<1, D / 8> sum;
  clear<1, D / 8>(sum);
  for (int turn = 0;; ++turn) {
    const int at = turn % KeyRing<D>::stages;
    const unsigned parity = unsigned(turn / KeyRing<D>::stages % 2);
    wait(ring.k_here[at], parity);
    const KeyTile now = ring.tile[at];
    if (!now.exists()) break;
    const WarpKeys& keys = ring.group_keys[group][now.own ? 1 : 0];
    if (keys.sees(now)) {
      Accumulator<1, N> p, dp;  // p: scores first
      clear<1, N>(p);
      clear<1, N>(dp);
      multiply_panels<D>(p[0], q, ring.stage[at].k);
      wait(ring.v_here[at], parity);
      multiply_panels<D>(dp[0], dy, ring.stage[at].v);
      if (!keys.sees_all(now, Cut::tile)) hide<1, N>(p, ring.row_keys.seen + first, now);
      softmax_backward<1, N>(p, dp, a.scale * log2_e, shared.lse + first, shared.delta + first);
      std::uint32_t ds[1][N / 2][4];
      round_to_left<1, N>(dp, ds);
      multiply_values<D>(sum[0], ds, ring.stage[at].k);
    }
    arrive(ring.free[at]);
  }
  sync_some(3, Cut::groups * Cut::group_threads);  // nobody reads a stage any more
  lay_out<D, 1, D / 8>(sum, shared.dq(group) + warp * 16 * tile_stride<D>);
  sync_some(1 + group, Cut::group_threads);
  add_tile<Cut::tile, D, Cut::group_threads>(
      shared.dq(group), tile_stride<D>, a.dim, true, a.scale, [&](int i) {
        const int row = group * Cut::tile + i;
        return row < tile.size ? dq + tile.source(row) * a.dim : nullptr;
      });
}

/// dq with products of warp groups and bulk copies.
template <int D>
__global__ void __launch_bounds__(HopperCut<D>::threads, 1)
    query_gradient_hopper_kernel(AttentionShape a, const bfloat16* q,
                                 const __grid_constant__ KeyMaps maps, const float* lse,
                                 const float* delta, const bfloat16* dy, bfloat16* dq) {
  if constexpr (has_hopper_instructions) {
    using Cut = HopperCut<D>;
    auto& shared = *panel_memory<HopperQueryShared<D>>();
    const int kv_head = int(blockIdx.y), begin = int(gridDim.x - 1 - blockIdx.x) * Cut::rows;
    const QueryTile tile(a, HeadsOfKey(a, kv_head), begin, Cut::rows);
    if (tile.size <= 0) return;
    const int group = int(threadIdx.x) / Cut::group_threads - 1;
    load_panels<D>(shared.q, tile, a.dim, q);
    load_panels<D>(shared.dy, tile, a.dim, dy);
    if (const int i = int(threadIdx.x); i < Cut::rows) {
      const index_t at = tile.source(min(i, tile.size - 1));
      shared.lse[i] = base_of(lse[at]);
      shared.delta[i] = delta[at];
    }
    shared.ring.begin(a, tile);
    if (group < 0) {
      keep_registers<40>();
      if (threadIdx.x < warp_size) copy_keys<D>(shared.ring, maps, kv_head);
    } else {
      take_registers<232>();
      query_gradient<D>(shared, a, tile, group, dq);
    }
  } else {
    refuse();
  }
}

/// 128 keys, and the way of query rows from the warp that copies them to the groups.
template <int D>
struct HopperKeyShared {
  using Cut = HopperCut<D>;
  static constexpr int stages = 3;
  struct Stage {
    bfloat16 q[Cut::tile_size], dy[Cut::tile_size];
  };
  bfloat16 k[Cut::groups * Cut::tile_size], v[Cut::groups * Cut::tile_size];
  Stage stage[stages];
  Barrier keys_here, rows_here[stages], free[stages];
  int first_pair[stages];
  KeyRange seen[stages][Cut::tile];
  float lse[stages][Cut::tile], delta[stages][Cut::tile];
  KeyRange warp_blocks[Cut::threads / warp_size];

  /// A group's 64 rows of dk or dv, in the place of the stages once all are done with.
  __device__ float* sum(int group) {
    static_assert(sizeof(stage) >= sizeof(float) * Cut::rows * tile_stride<D>);
    return reinterpret_cast<float*>(stage) + group * Cut::tile * tile_stride<D>;
  }
};

/// The query tensors, for bulk copies of 64 (query row, head) pairs.
struct QueryMaps {
  TensorMap q, dy;
};

/// The warp that copies the pairs which see some of the keys.
template <int D>
__device__ __forceinline__ void copy_queries(HopperKeyShared<D>& shared, const AttentionShape& a,
                                             const KeyGradientTile& tile, KeyRange pairs,
                                             const QueryMaps& queries, const KeyMaps& keys,
                                             int kv_head, const float* lse, const float* delta) {
  using Cut = HopperCut<D>;
  constexpr unsigned bytes = Cut::tile_size * sizeof(bfloat16);
  if (lane_index() == 0) {
    arrive_expecting(shared.keys_here, 2 * Cut::groups * bytes);
    for (int g = 0; g < Cut::groups; ++g) {
      const int row = tile.begin + g * Cut::tile;
      copy_panels<D>(shared.k + g * Cut::tile_size, tile.own ? keys.k_block : keys.k_context,
                     shared.keys_here, kv_head, row);
      copy_panels<D>(shared.v + g * Cut::tile_size, tile.own ? keys.v_block : keys.v_context,
                     shared.keys_here, kv_head, row);
    }
  }
  int pair = tile.next(a, pairs.begin, pairs.end);
  for (int turn = 0;; ++turn) {
    const int at = turn % HopperKeyShared<D>::stages;
    wait(shared.free[at], unsigned(turn / HopperKeyShared<D>::stages % 2) ^ 1);
    if (lane_index() == 0) {
      shared.first_pair[at] = pair;
      if (pair < pairs.end) {
        arrive_expecting(shared.rows_here[at], 2 * bytes);
        const int row = pair / tile.heads.count;
        copy_panels<D>(shared.stage[at].q, queries.q, shared.rows_here[at], tile.heads.first, row);
        copy_panels<D>(shared.stage[at].dy, queries.dy, shared.rows_here[at], tile.heads.first,
                       row);
      } else {
        arrive(shared.rows_here[at]);
      }
    }
    if (pair < pairs.end) {
      const QueryTile rows(a, tile.heads, pair, min(Cut::tile, pairs.end - pair));
      for (int i = lane_index(); i < Cut::tile; i += warp_size) {
        const bool here = i < rows.size;
        shared.seen[at][i] = here ? a.seen[rows.row_of(i)].of(tile.own) : KeyRange{0, 0};
        shared.lse[at][i] = here ? lse[rows.source(i)] : 0;
        shared.delta[at][i] = here ? delta[rows.source(i)] : 0;
      }
    }
    arrive(shared.rows_here[at]);
    if (pair >= pairs.end) return;
    pair = tile.next(a, pair + Cut::tile, pairs.end);
  }
}

/// A group of warps that computes dk and dv of 64 keys.
template <int D>
__device__ __forceinline__ void key_gradient(HopperKeyShared<D>& shared, const AttentionShape& a,
                                             const KeyGradientTile& tile, KeyRange pairs,
                                             const KeyGradientParts& parts, int group, int kv_head,
                                             const KeyValue<bfloat16>& dkv) {
  using Cut = HopperCut<D>;
  constexpr int N = Cut::tile / 8;
  const int warp = int(threadIdx.x) / warp_size % 4, begin = tile.begin + group * Cut::tile;
  const bfloat16* const k = shared.k + group * Cut::tile_size;
  const bfloat16* const v = shared.v + group * Cut::tile_size;
  Accumulator<1, D / 8> dk, dv;
  clear<1, D / 8>(dk);
  clear<1, D / 8>(dv);
  wait(shared.keys_here, 0);
  for (int turn = 0;; ++turn) {
    const int at = turn % HopperKeyShared<D>::stages;
    wait(shared.rows_here[at], unsigned(turn / HopperKeyShared<D>::stages % 2));
    if (shared.first_pair[at] >= pairs.end) break;
    const auto& stage = shared.stage[at];
    Accumulator<1, N> p, dp;
    clear<1, N>(p);
    multiply_panels<D>(p[0], k, stage.q);
    probabilities<N>(p, a.scale * log2_e, shared.lse[at], shared.seen[at], begin + warp * 16, begin,
                     Cut::tile);
    std::uint32_t left[1][N / 2][4];
    round_to_left<1, N>(p, left);
    multiply_values<D>(dv[0], left, stage.dy);
    clear<1, N>(dp);
    multiply_panels<D>(dp[0], v, stage.dy);
    score_gradients<N>(dp, p, shared.delta[at]);
    round_to_left<1, N>(dp, left);
    multiply_values<D>(dk[0], left, stage.q);
    arrive(shared.free[at]);
  }
  sync_some(3, Cut::groups * Cut::group_threads);  // nobody reads a stage any more
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    lay_out<D, 1, D / 8>(which == 0 ? dk : dv, shared.sum(group) + warp * 16 * tile_stride<D>);
    sync_some(1 + group, Cut::group_threads);
    store_key_gradient<D, Cut::tile, D, Cut::group_threads>(
        shared.sum(group), which, a, parts, tile, {begin, tile.end}, kv_head, 0, dkv);
    sync_some(1 + group, Cut::group_threads);
  }
}

/// dk and dv with products of warp groups and bulk copies.
template <int D>
__global__ void __launch_bounds__(HopperCut<D>::threads, 1)
    key_gradient_hopper_kernel(AttentionShape a, KeyGradientParts parts,
                               const __grid_constant__ QueryMaps queries,
                               const __grid_constant__ KeyMaps keys, const float* lse,
                               const float* delta, KeyValue<bfloat16> dkv) {
  if constexpr (has_hopper_instructions) {
    using Cut = HopperCut<D>;
    auto& shared = *panel_memory<HopperKeyShared<D>>();
    const int kv_head = int(blockIdx.y), group = int(threadIdx.x) / Cut::group_threads - 1;
    const KeyGradientTile tile(a, kv_head, int(blockIdx.x), Cut::rows, parts.most);
    const KeyRange pairs = pairs_of_part(tile, parts, tile.pairs(a, shared.warp_blocks), kv_head);
    if (pairs.begin >= pairs.end) return;
    if (threadIdx.x == 0) {
      begin_barrier(shared.keys_here, 1);
      for (int i = 0; i < HopperKeyShared<D>::stages; ++i) {
        begin_barrier(shared.rows_here[i], 1 + warp_size);
        begin_barrier(shared.free[i], Cut::groups * Cut::group_threads);
      }
      fence_barriers();
    }
    __syncthreads();
    if (group < 0) {
      keep_registers<40>();
      if (threadIdx.x < warp_size)
        copy_queries<D>(shared, a, tile, pairs, queries, keys, kv_head, lse, delta);
    } else {
      take_registers<232>();
      key_gradient<D>(shared, a, tile, pairs, parts, group, kv_head, dkv);
    }
  } else {
    refuse();
  }
}

/// Whether bulk copies can take 64 pairs at a time: whole groups of heads, in whole rows.
inline bool hopper_goes_back(const AttentionShape& a) {
  return hopper_attends(a) && 64 % a.group == 0 && a.first_head % a.group == 0 &&
         a.heads % a.group == 0;
}

template <int D>
void launch_query_gradient_hopper(CudaBackend<bfloat16>& backend,
                                  const AttentionPlan<bfloat16>& plan, const bfloat16* q,
                                  KeyValue<const bfloat16> kv, const float* lse, const float* delta,
                                  const bfloat16* dy, bfloat16* dq) {
  using Cut = HopperCut<D>;
  launch(backend.stream(), query_gradient_hopper_kernel<D>,
         dim3(plan.query_tiles(Cut::rows), plan.used_kv_heads()), Cut::threads,
         sizeof(HopperQueryShared<D>) + panel_alignment, plan.shape(), q, key_maps(kv), lse, delta,
         dy, dq);
}

template <int D>
void launch_key_gradient_hopper(CudaBackend<bfloat16>& backend, const AttentionPlan<bfloat16>& plan,
                                In<bfloat16, 3> q, KeyValue<const bfloat16> kv, const float* lse,
                                const float* delta, In<bfloat16, 3> dy, KeyValue<bfloat16> dkv) {
  using Cut = HopperCut<D>;
  const AttentionShape& a = plan.shape();
  const KeyGradientWork work(backend, plan, Cut::rows, Cut::tile, D);
  const QueryMaps queries{tensor_map(q, 64 / a.group, a.group),
                          tensor_map(dy, 64 / a.group, a.group)};
  launch(backend.stream(), key_gradient_hopper_kernel<D>,
         dim3(plan.key_tiles(Cut::rows, work.parts().most), plan.used_kv_heads()), Cut::threads,
         sizeof(HopperKeyShared<D>) + panel_alignment, a, work.parts(), queries, key_maps(kv), lse,
         delta, dkv);
  work.template add_up<D, Cut::rows>(backend, plan, dkv);
}

}  // namespace dflash::cuda
