#pragma once

#include <algorithm>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_hopper_ring.cuh"
#include "dflash/cuda/attention_query_gradient.cuh"

namespace dflash::cuda {

template <int D>
struct HopperQueryShared {
  using Cut = HopperCut<D>;
  bfloat16 dy[Cut::groups * Cut::tile_size];
  KeyRing<D, 64, 3, Cleared::keys> ring;
  Barrier dy_here, dy_free;
  float base[2][Cut::rows], delta[2][Cut::rows];
};

/// What a group of warps computes of dq of 64 rows.
template <int D>
struct HopperQueryGradient {
  static constexpr int N = HopperCut<D>::tile / 8;
  const AttentionShape& a;
  HopperQueryShared<D>& shared;
  bfloat16* dq;
  const SeenKeys* seen = nullptr;  // of the warp's rows
  std::uint64_t q = 0, dy = 0;     // the group's, described
  float base[1][2], delta[1][2];
  Accumulator<1, D / 8> sum;
  Accumulator<1, N> p, dp;  // p: scores first
  std::uint32_t ds[1][N / 2][4];

  __device__ HopperQueryGradient(const AttentionShape& shape, HopperQueryShared<D>& memory,
                                 bfloat16* to)
      : a(shape), shared(memory), dq(to) {}
  __device__ __forceinline__ void begin(const HopperWork<D>& work, int at, const bfloat16* rows,
                                        int group, int first) {
    seen = work.rows.seen + first;
    q = describe(rows);
    dy = describe(shared.dy + group * HopperCut<D>::tile_size);
    wait(shared.dy_here, unsigned(at));
    of_rows<1>(shared.base[at] + first, base);
    of_rows<1>(shared.delta[at] + first, delta);
    clear<1, D / 8>(sum);
  }
  template <class Ring>
  __device__ __forceinline__ void begin_scores(Ring& ring, const typename Ring::Place& place) {
    multiply_panels<D>(p[0], q, ring.k(place));
    multiply_panels<D>(dp[0], dy, ring.v(place));
  }
  template <int pending>
  __device__ __forceinline__ void wait_scores() {
    wait_group_products<pending>(p[0]);
    wait_group_products<pending>(dp[0]);
  }
  __device__ __forceinline__ void weigh(const KeyTile& now, bool all_seen) {
    if (!all_seen) hide<1, N>(p, seen, now);
    softmax_backward<1, N>(p, dp, a.scale * log2_e, base, delta);
    settle(dp[0][0][0] + dp[0][N - 1][3]);
  }
  template <class Ring>
  __device__ __forceinline__ void begin_sum(Ring& ring, const typename Ring::Place& place) {
    multiply_values<D>(sum[0], ds, ring.k_values(place));
  }
  __device__ __forceinline__ void end_scores() { arrive_as_warp(shared.dy_free); }
  __device__ __forceinline__ void end_sum() { wait_group_products<0>(sum[0]); }
  __device__ __forceinline__ void round() { round_to_left<1, N>(dp, ds); }

  __device__ __forceinline__ void end(const QueryTile& tile, int first) {
    const int row = first + lane_index() / 4;
    const auto place = [&](int i) { return i < tile.size ? dq + tile.source(i) * a.dim : nullptr; };
    add_columns<D / 8>(sum, a.scale, {place(row), place(row + 8)}, a.dim);
  }
};

/// dq with products of warp groups and bulk copies.
template <int D>
__global__ void __launch_bounds__(HopperCut<D>::threads, 1)
    query_gradient_hopper_kernel(AttentionShape a, HopperItems items, const bfloat16* q,
                                 const __grid_constant__ KeyMaps maps, const float* lse,
                                 const float* delta, const bfloat16* dy, bfloat16* dq) {
  if constexpr (has_hopper_instructions) {
    auto& shared = *panel_memory<HopperQueryShared<D>>();
    if (threadIdx.x == 0) {
      begin_barrier(shared.dy_here, shared.ring.planners * warp_size);
      begin_barrier(shared.dy_free, HopperCut<D>::groups * HopperCut<D>::group_warps);
    }
    const auto load = [&](const QueryTile& rows, int at, int thread, int threads) {
      for (int i = thread; i < HopperCut<D>::rows; i += threads) {
        const index_t row = rows.source(min(i, rows.size - 1));
        shared.base[at][i] = base_of(lse[row]);
        shared.delta[at][i] = delta[row];
      }
      wait(shared.dy_free, unsigned(at) ^ 1);
      load_panels<D>(shared.dy, rows, a.dim, dy, thread, threads);
      copy_async_commit();
      copy_async_wait<0>();
      fence_async();
      arrive(shared.dy_here);
    };
    attend<D>(shared.ring, a, items, q, maps, load, HopperQueryGradient<D>(a, shared, dq));
  } else {
    refuse();
  }
}

template <int D>
void launch_query_gradient_hopper(CudaBackend<bfloat16>& backend,
                                  const AttentionPlan<bfloat16>& plan, const bfloat16* q,
                                  KeyValue<const bfloat16> kv, const float* lse, const float* delta,
                                  const bfloat16* dy, bfloat16* dq) {
  const HopperItems items(plan, HopperCut<D>::rows, 1);
  launch(backend.stream(), query_gradient_hopper_kernel<D>, items.blocks(backend.multiprocessors()),
         HopperCut<D>::threads, sizeof(HopperQueryShared<D>), plan.shape(), items, q,
         key_maps(kv, 64), lse, delta, dy, dq);
}

}  // namespace dflash::cuda
