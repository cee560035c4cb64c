#pragma once

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_hopper_tile.cuh"
#include "dflash/cuda/attention_key_gradient.cuh"

namespace dflash::cuda {

/// Neighbouring numbers that one access reads.
struct alignas(8) FloatPair {
  float x[2];
};

/// What the keys' gradient knows of 64 (query row, head) pairs, beside their rows.
struct PairNumbers {
  KeyRange seen[64];
  FloatPair base[32], delta[32];
  struct Half {
    bool exists, all_seen;  // all_seen: every pair sees every key of the tile
  } half[2];

  __device__ bool exist() const { return half[0].exists; }
  __device__ bool all_seen() const { return half[0].all_seen && half[1].all_seen; }
};

/// 128 keys, and the way of query rows from the warp that copies them to the groups.
template <int D>
struct HopperKeyShared {
  using Cut = HopperCut<D>;
  static constexpr int stages = 3;
  using Place = RingPlace<stages>;
  struct Stage {
    bfloat16 q[Cut::tile_size], dy[Cut::tile_size];
  };
  bfloat16 k[Cut::groups * Cut::tile_size], v[Cut::groups * Cut::tile_size];
  Stage stage[stages];
  Barrier keys_here, here[stages], free[stages];
  PairNumbers pairs[stages];
  KeyRange warp_blocks[Cut::threads / warp_size];

  /// One thread of the block calls it; a block barrier must follow.
  __device__ void begin() {
    begin_barrier(keys_here, 1);
    for (int i = 0; i < stages; ++i) {
      begin_barrier(here[i], 3);
      begin_barrier(free[i], Cut::groups * Cut::group_warps);
    }
    fence_barriers();
  }
};

/// The query tensors, for bulk copies of 64 (query row, head) pairs.
struct QueryMaps {
  TensorMap q, dy;
};

/// The warp that copies the keys, and the rows of the pairs which see some of them.
template <int D>
__device__ __forceinline__ void copy_queries(HopperKeyShared<D>& shared, const AttentionShape& a,
                                             const KeyGradientTile& tile, KeyRange pairs,
                                             const QueryMaps& queries, const KeyMaps& keys,
                                             int kv_head) {
  using Cut = HopperCut<D>;
  if (lane_index() == 0) {
    arrive_expecting(shared.keys_here, sizeof shared.k + sizeof shared.v);
    for (int g = 0; g < Cut::groups; ++g) {
      const int row = tile.begin + g * Cut::tile;
      copy_panels<D>(shared.k + g * Cut::tile_size, tile.own ? keys.k_block : keys.k_context,
                     shared.keys_here, kv_head, row);
      copy_panels<D>(shared.v + g * Cut::tile_size, tile.own ? keys.v_block : keys.v_context,
                     shared.keys_here, kv_head, row);
    }
  }
  typename HopperKeyShared<D>::Place place;
  int pair = tile.next(a, pairs.begin, pairs.end);
  for (; pair < pairs.end; place.advance()) {
    const int after = tile.next(a, pair + Cut::tile, pairs.end);
    wait(shared.free[place.at], place.parity ^ 1);
    if (lane_index() == 0) {
      auto& stage = shared.stage[place.at];
      Barrier& here = shared.here[place.at];
      const int row = pair / tile.heads.count;
      arrive_expecting(here, sizeof stage);
      copy_panels<D>(stage.q, queries.q, here, tile.heads.first, row);
      copy_panels<D>(stage.dy, queries.dy, here, tile.heads.first, row);
    }
    pair = after;
  }
  wait(shared.free[place.at], place.parity ^ 1);
  if (lane_index() == 0) arrive(shared.here[place.at]);
}

/// A warp that brings the numbers of one half of the same pairs, 0 or 1, and says when there are no
/// more.
template <int D>
__device__ __forceinline__ void copy_numbers(HopperKeyShared<D>& shared, const AttentionShape& a,
                                             const KeyGradientTile& tile, KeyRange pairs, int half,
                                             const float* lse, const float* all_delta) {
  const int i = half * warp_size + lane_index();
  typename HopperKeyShared<D>::Place place;
  for (int pair = tile.next(a, pairs.begin, pairs.end);; place.advance()) {
    PairNumbers& to = shared.pairs[place.at];
    const bool exists = pair < pairs.end;
    KeyRange seen = {};
    float base = 0, delta = 0;
    if (pair + i < pairs.end) {
      const QueryTile rows(a, tile.heads, pair, HopperCut<D>::tile);
      const index_t at = rows.source(i);
      seen = a.seen[rows.row_of(i)].of(tile.own);
      base = lse[at] * log2_e;
      delta = all_delta[at];
    }
    if (exists) pair = tile.next(a, pair + HopperCut<D>::tile, pairs.end);
    wait(shared.free[place.at], place.parity ^ 1);
    to.seen[i] = seen;
    to.base[i / 2].x[i % 2] = base;
    to.delta[i / 2].x[i % 2] = delta;
    const bool all = __all_sync(whole_warp, seen.begin <= tile.begin && seen.end >= tile.end);
    if (lane_index() == 0) to.half[half] = {exists, all};
    arrive_as_warp(shared.here[place.at]);
    if (!exists) return;
  }
}

/// What a group of warps computes: dk and dv of 64 keys, the rows of its products.
template <int D>
struct HopperKeyGradient {
  using Cut = HopperCut<D>;
  static constexpr int N = Cut::tile / 8;
  using Place = typename HopperKeyShared<D>::Place;
  HopperKeyShared<D>& shared;
  const AttentionShape& a;
  const bfloat16 *k, *v;  // of the group
  int first_key;          // of the warp
  Accumulator<1, D / 8> dk, dv;
  Accumulator<1, N> p, dp;
  std::uint32_t left[1][N / 2][4];

  __device__ HopperKeyGradient(HopperKeyShared<D>& memory, const AttentionShape& shape,
                               const KeyGradientTile& tile, int group)
      : shared(memory),
        a(shape),
        k(memory.k + group * Cut::tile_size),
        v(memory.v + group * Cut::tile_size),
        first_key(tile.begin + group * Cut::tile +
                  int(threadIdx.x) / warp_size % Cut::group_warps * 16) {}

  __device__ __forceinline__ void begin_scores(Place place) {
    begin_group_products();
    multiply_panels<D>(p[0], describe(k), describe(shared.stage[place.at].q));
    commit_group_products();
  }
  __device__ __forceinline__ void begin_dp(Place place) {
    begin_group_products();
    multiply_panels<D>(dp[0], describe(v), describe(shared.stage[place.at].dy));
    commit_group_products();
  }
  __device__ __forceinline__ void begin_dv(Place place) {
    begin_group_products();
    multiply_values<D>(dv[0], left, describe_values<Cut::tile>(shared.stage[place.at].dy));
    commit_group_products();
  }
  __device__ __forceinline__ void begin_dk(Place place) {
    begin_group_products();
    multiply_values<D>(dk[0], left, describe_values<Cut::tile>(shared.stage[place.at].q));
    commit_group_products();
  }

  /// Scores become the probabilities 2^(scale score - base), 0 where the query does not see the
  /// key.
  __device__ __forceinline__ void weigh(const PairNumbers& pairs) {
    const float scale = a.scale * log2_e;
    const int lane = lane_index() % 4, key = first_key + lane_index() / 4;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const FloatPair base = pairs.base[n * 4 + lane];
#pragma unroll
      for (int i = 0; i < 4; ++i) p[0][n][i] = exp2_fast(p[0][n][i] * scale - base.x[i % 2]);
    }
    if (!pairs.all_seen()) {
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const KeyRange seen = pairs.seen[n * 8 + lane * 2 + i % 2];
          const int row = key + i / 2 * 8;
          if (row < seen.begin || row >= seen.end) p[0][n][i] = 0;
        }
    }
  }
  /// dp becomes p (dp - delta), 0 where p is.
  __device__ __forceinline__ void weigh_gradient(const PairNumbers& pairs) {
    const int lane = lane_index() % 4;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const FloatPair delta = pairs.delta[n * 4 + lane];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = p[0][n][i];
        dp[0][n][i] = weight != 0 ? weight * (dp[0][n][i] - delta.x[i % 2]) : 0;
      }
    }
  }

  /// Over all tiles of pairs. The products of the next tile's scores begin before those of this
  /// tile's gradients have ended.
  __device__ __forceinline__ void walk() {
    clear<1, D / 8>(dk);
    clear<1, D / 8>(dv);
    wait(shared.keys_here, 0);
    Place place, before;
    for (bool first = true;; first = false) {
      wait(shared.here[place.at], place.parity);
      const PairNumbers& pairs = shared.pairs[place.at];
      if (!pairs.exist()) break;
      begin_scores(place);
      begin_dp(place);
      wait_group_products<2>(dk[0]);
      if (!first) arrive_as_warp(shared.free[before.at]);
      wait_group_products<1>(p[0]);
      weigh(pairs);
      round_to_left<1, N>(p, left);
      begin_dv(place);
      wait_group_products<1>(dp[0]);
      weigh_gradient(pairs);
      settle(dp[0][N - 1][3]);
      wait_group_products<0>(dv[0]);
      round_to_left<1, N>(dp, left);
      begin_dk(place);
      before = place;
      place.advance();
    }
    wait_group_products<0>(dk[0]);
  }

  /// Adds dk (which = 0) or dv to the whole, or stores it as one part of it.
  __device__ __forceinline__ void add(int which, const KeyGradientTile& tile,
                                      const KeyGradientParts& parts, int kv_head,
                                      const KeyValue<bfloat16>& dkv) {
    const Accumulator<1, D / 8>& sum = which == 0 ? dk : dv;
    const float times = which == 0 ? a.scale : 1;
    const View<bfloat16, 3> to = which == 0 ? (tile.own ? dkv.k_block : dkv.k_context)
                                            : (tile.own ? dkv.v_block : dkv.v_context);
    const int key = first_key + lane_index() / 4;
    if (parts.most > 1 && !tile.own) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = key + half * 8;
        store_columns<1, D / 8>(
            sum, half, times,
            i < tile.end ? parts.at(tile.part, which, a, i, kv_head, D) : nullptr);
      }
      return;
    }
    const auto place = [&](int i) {
      return i < tile.end ? to.data + (index_t(i) * a.kv_heads + kv_head) * a.dim : nullptr;
    };
    add_columns<D / 8>(sum, times, {place(key), place(key + 8)}, a.dim);
  }
};

/// The tasks of all key/value heads in the order in which they begin: one head's context after the
/// other, so that its query rows stay in cache, and what is short last.
struct KeyTasks {
  int context, own, kv_heads;  // tasks of each head

  unsigned count() const { return unsigned((context + own) * kv_heads); }
  __device__ int kv_head(int item) const {
    const int rest = item - context * kv_heads;
    return rest < 0 ? item / context : rest / own;
  }
  __device__ int task(int item) const {
    const int rest = item - context * kv_heads;
    return rest < 0 ? item % context : context + rest % own;
  }
};

/// dk and dv with products of warp groups and bulk copies.
template <int D>
__global__ void __launch_bounds__(HopperCut<D>::threads, 1)
    key_gradient_hopper_kernel(AttentionShape a, KeyTasks tasks, KeyGradientParts parts,
                               const __grid_constant__ QueryMaps queries,
                               const __grid_constant__ KeyMaps keys, const float* lse,
                               const float* delta, KeyValue<bfloat16> dkv) {
  if constexpr (has_hopper_instructions) {
    using Cut = HopperCut<D>;
    auto& shared = *panel_memory<HopperKeyShared<D>>();
    const int kv_head = tasks.kv_head(int(blockIdx.x)), task = tasks.task(int(blockIdx.x));
    const int warp = warp_index();
    const KeyGradientTile tile(a, kv_head, task, Cut::rows, parts.most);
    const KeyRange pairs =
        pairs_of_part(tile, parts, tile.pairs(a, shared.warp_blocks), kv_head, tasks.kv_heads);
    if (pairs.begin >= pairs.end) return;
    if (threadIdx.x == 0) shared.begin();
    __syncthreads();
    const int group = warp / Cut::group_warps - 1;
    if (group < 0) {
      keep_registers<24>();
      if (warp == 0) copy_queries<D>(shared, a, tile, pairs, queries, keys, kv_head);
      if (warp == 1 || warp == 2) copy_numbers<D>(shared, a, tile, pairs, warp - 1, lse, delta);
    } else {
      take_registers<240>();
      HopperKeyGradient<D> sums(shared, a, tile, group);
      sums.walk();
      sums.add(0, tile, parts, kv_head, dkv);
      sums.add(1, tile, parts, kv_head, dkv);
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
void launch_key_gradient_hopper(CudaBackend<bfloat16>& backend, const AttentionPlan<bfloat16>& plan,
                                In<bfloat16, 3> q, KeyValue<const bfloat16> kv, const float* lse,
                                const float* delta, In<bfloat16, 3> dy, KeyValue<bfloat16> dkv) {
  using Cut = HopperCut<D>;
  const AttentionShape& a = plan.shape();
  const KeyGradientWork work(backend, plan, Cut::rows, Cut::tile, D);
  const QueryMaps queries{tensor_map(q, 64 / a.group, a.group),
                          tensor_map(dy, 64 / a.group, a.group)};
  const KeyTasks tasks{int(plan.context_tasks(Cut::rows, work.parts().most)),
                       int(plan.own_tasks(Cut::rows)), int(plan.used_kv_heads())};
  launch(backend.stream(), key_gradient_hopper_kernel<D>, tasks.count(), Cut::threads,
         sizeof(HopperKeyShared<D>), a, tasks, work.parts(), queries, key_maps(kv, Cut::tile), lse,
         delta, dkv);
  work.template add_up<D, Cut::rows>(backend, plan, dkv);
}

}  // namespace dflash::cuda
