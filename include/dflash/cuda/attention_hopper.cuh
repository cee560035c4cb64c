#pragma once

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_forward.cuh"
#include "dflash/cuda/attention_hopper_ring.cuh"

namespace dflash::cuda {

template <int D>
struct HopperForwardShared {
  bfloat16 q[HopperCut<D>::groups * HopperCut<D>::tile_size];
  KeyRing<D> ring;
};

/// A group of warps that computes: 64 rows of the tile.
template <int D>
__device__ __forceinline__ void attend(HopperForwardShared<D>& shared, const AttentionShape& a,
                                       const QueryTile& tile, int group, bfloat16* y, float* lse) {
  using Cut = HopperCut<D>;
  constexpr int N = Cut::tile / 8;
  const int warp = int(threadIdx.x) / warp_size % 4, first = group * Cut::tile + warp * 16;
  auto& ring = shared.ring;
  bfloat16* const q = shared.q + group * Cut::tile_size;
  Accumulator<1, D / 8> out;
  clear<1, D / 8>(out);
  RunningSoftmax<1> softmax;
  for (int turn = 0;; ++turn) {
    const int at = turn % KeyRing<D>::stages;
    const unsigned parity = unsigned(turn / KeyRing<D>::stages % 2);
    wait(ring.k_here[at], parity);
    const KeyTile now = ring.tile[at];
    if (!now.exists()) break;
    const WarpKeys& keys = ring.group_keys[group][now.own ? 1 : 0];
    if (keys.sees(now)) {
      Accumulator<1, N> score;
      clear<1, N>(score);
      multiply_panels<D>(score[0], q, ring.stage[at].k);
      if (!keys.sees_all(now, Cut::tile)) hide<1, N>(score, ring.row_keys.seen + first, now);
      softmax.template step<N, D / 8>(score, a.scale * log2_e, out);
      std::uint32_t p[1][N / 2][4];
      round_to_left<1, N>(score, p);
      wait(ring.v_here[at], parity);
      multiply_values<D>(out[0], p, ring.stage[at].v);
    }
    arrive(ring.free[at]);
  }
  softmax.finish();
  sync_some(1 + group, Cut::group_threads);  // nobody reads q any more
  store_rows<D, 1, D>(out, softmax, q + warp * 16 * D, tile, first, a, y, lse);
}

/// Forward with products of warp groups and bulk copies.
template <int D>
__global__ void __launch_bounds__(HopperCut<D>::threads, 1)
    attention_hopper_kernel(AttentionShape a, const bfloat16* q,
                            const __grid_constant__ KeyMaps maps, bfloat16* y, float* lse) {
  if constexpr (has_hopper_instructions) {
    using Cut = HopperCut<D>;
    auto& shared = *panel_memory<HopperForwardShared<D>>();
    const int kv_head = int(blockIdx.y), begin = int(gridDim.x - 1 - blockIdx.x) * Cut::rows;
    const QueryTile tile(a, HeadsOfKey(a, kv_head), begin, Cut::rows);
    if (tile.size <= 0) return;
    const int group = int(threadIdx.x) / Cut::group_threads - 1;
    load_panels<D>(shared.q, tile, a.dim, q);
    shared.ring.begin(a, tile);
    if (group < 0) {
      keep_registers<40>();
      if (threadIdx.x < warp_size) copy_keys<D>(shared.ring, maps, kv_head);
    } else {
      take_registers<232>();
      attend<D>(shared, a, tile, group, y, lse);
    }
  } else {
    refuse();
  }
}

template <int D>
void launch_attention_hopper(CudaBackend<bfloat16>& backend, const AttentionPlan<bfloat16>& plan,
                             const bfloat16* q, KeyValue<const bfloat16> kv, bfloat16* y,
                             float* lse) {
  using Cut = HopperCut<D>;
  launch(backend.stream(), attention_hopper_kernel<D>,
         dim3(plan.query_tiles(Cut::rows), plan.used_kv_heads()), Cut::threads,
         sizeof(HopperForwardShared<D>) + panel_alignment, plan.shape(), q, key_maps(kv), y, lse);
}

}  // namespace dflash::cuda
