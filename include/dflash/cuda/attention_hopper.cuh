#pragma once

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_forward.cuh"
#include "dflash/cuda/attention_hopper_ring.cuh"

namespace dflash::cuda {

template <int D>
using HopperForwardRing = KeyRing<D, 128, 2, Cleared::values>;

/// What a group of warps computes of 64 query rows.
template <int D>
struct HopperForward {
  static constexpr int N = HopperForwardRing<D>::keys / 8;
  const AttentionShape& a;
  bfloat16* y;
  float* lse;
  const SeenKeys* seen = nullptr;  // of the warp's rows
  std::uint64_t q = 0;             // the group's, described
  Accumulator<1, D / 8> out;
  Accumulator<1, N> score;
  std::uint32_t p[1][N / 2][4];
  RunningSoftmax<1> softmax;
  float shrink[1][2];
  bool same;

  __device__ HopperForward(const AttentionShape& shape, bfloat16* to, float* lse_of_rows)
      : a(shape), y(to), lse(lse_of_rows) {}
  __device__ __forceinline__ void begin(const HopperWork<D>& work, int, const bfloat16* rows, int,
                                        int first) {
    q = describe(rows);
    seen = work.rows.seen + first;
    clear<1, D / 8>(out);
    softmax = {};
  }
  template <class Ring>
  __device__ __forceinline__ void begin_scores(Ring& ring, const typename Ring::Place& place) {
    multiply_panels<D>(score[0], q, ring.k(place));
  }
  template <int pending>
  __device__ __forceinline__ void wait_scores() {
    wait_group_products<pending>(score[0]);
  }
  __device__ __forceinline__ void weigh(const KeyTile& now, bool all_seen) {
    if (!all_seen) hide<1, N>(score, seen, now);
    same = softmax.template weigh<N>(score, a.scale * log2_e, shrink);
    settle(softmax.sum[0][0] + softmax.sum[0][1]);
  }
  template <class Ring>
  __device__ __forceinline__ void begin_sum(Ring& ring, const typename Ring::Place& place) {
    multiply_values<D>(out[0], p, ring.v_values(place));
  }
  __device__ __forceinline__ void end_scores() {}
  __device__ __forceinline__ void end_sum() { wait_group_products<0>(out[0]); }
  __device__ __forceinline__ void round() {
    if (!same) softmax.template scale_rows<D / 8>(out, shrink);
    round_to_left<1, N>(score, p);
  }

  __device__ __forceinline__ void end(const QueryTile& tile, int first) {
    softmax.finish();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + half * 8 + lane_index() / 4, lane = lane_index() % 4;
      const float sum = softmax.sum[0][half], share = sum > 0 ? 1 / sum : 0;
      const bool here = row < tile.size;
      const index_t at = here ? tile.source(row) : 0;
      if (here && lane == 0) lse[at] = softmax.top[0][half] * a.scale + logf(sum);
#pragma unroll
      for (int piece = 0; piece < D / 8; piece += 4) {
        std::uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          x[i] = pack_bfloat16(out[0][piece + i][half * 2] * share,
                               out[0][piece + i][half * 2 + 1] * share);
        gather_piece(x);
        const int column = (piece + lane) * 8;
        if (here && column < a.dim)
          *reinterpret_cast<uint4*>(y + at * a.dim + column) = {x[0], x[1], x[2], x[3]};
      }
    }
  }
};

/// Forward with products of warp groups and bulk copies.
template <int D>
__global__ void __launch_bounds__(HopperCut<D>::threads, 1)
    attention_hopper_kernel(AttentionShape a, HopperItems items, const bfloat16* q,
                            const __grid_constant__ KeyMaps maps, bfloat16* y, float* lse) {
  if constexpr (has_hopper_instructions) {
    attend<D>(
        *panel_memory<HopperForwardRing<D>>(), a, items, q, maps,
        [](const QueryTile&, int, int, int) {}, HopperForward<D>(a, y, lse));
  } else {
    refuse();
  }
}

template <int D>
void launch_attention_hopper(CudaBackend<bfloat16>& backend, const AttentionPlan<bfloat16>& plan,
                             const bfloat16* q, KeyValue<const bfloat16> kv, bfloat16* y,
                             float* lse) {
  const HopperItems items(plan, HopperCut<D>::rows, 0);
  launch(backend.stream(), attention_hopper_kernel<D>, items.blocks(backend.multiprocessors()),
         HopperCut<D>::threads, sizeof(HopperForwardRing<D>), plan.shape(), items, q,
         key_maps(kv, HopperForwardRing<D>::keys), y, lse);
}

}  // namespace dflash::cuda
