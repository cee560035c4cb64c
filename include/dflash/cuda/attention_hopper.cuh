#pragma once

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_forward.cuh"
#include "dflash/cuda/hopper.cuh"

namespace dflash::cuda {

/// Whether attention takes the kernel for Hopper where it can. It ran on the emulated device only:
/// turn it on once it has been checked and measured on a GPU.
inline constexpr bool prefer_hopper_attention = false;

/// Whether this device and problem are some that the kernel for Hopper can do.
inline bool hopper_attends(const AttentionShape& a) {
  static const bool hopper = [] {
    int device = 0;
    cudaDeviceProp properties;
    cuda_expects(cudaGetDevice(&device), "the CUDA device");
    cuda_expects(cudaGetDeviceProperties(&properties, device), "the CUDA device");
    return properties.major == 9;
  }();
  return hopper && a.vectors && a.dim <= 128;
}

/// How forward is cut on Hopper, for a head of up to D elements: one warp copies keys and values a
/// few tiles ahead, two groups of four warps hold 64 query rows each.
template <int D>
struct HopperCut {
  static constexpr int keys = 64, group_rows = 64, groups = 2, rows = groups * group_rows;
  static constexpr int group_threads = 4 * warp_size, threads = (1 + groups) * group_threads;
  static constexpr int stages = 4, panels = D / 64, panel = 64 * 64;  // elements

  struct Stage {
    bfloat16 k[panels * panel], v[panels * panel];
  };
  struct Shared {
    bfloat16 q[groups * panels * panel];
    Stage stage[stages];
    Barrier k_here[stages], v_here[stages], free[stages], partial_v;
    KeyTile tile[stages];
    TileKeys<rows> row_keys;
    KeyTiles<keys> tiles;
    WarpKeys group_keys[groups][2];
  };
  static_assert(sizeof(Stage) % panel_alignment == 0 && panel * 2 % panel_alignment == 0);
};

/// The tensors of keys and values, for bulk copies.
struct KeyMaps {
  TensorMap k_context, v_context, k_block, v_block;
};

/// Query rows as panels, by all threads of the block.
template <int D>
__device__ __forceinline__ void load_panels(bfloat16* to, const QueryTile& tile, int dim,
                                            const bfloat16* q) {
  using Cut = HopperCut<D>;
  constexpr int chunks = D / 8;
  for (int i = int(threadIdx.x); i < Cut::rows * chunks; i += Cut::threads) {
    const int row = i / chunks, chunk = i % chunks, group = row / Cut::group_rows;
    EightElements eight = {};
    if (row < tile.size && chunk * 8 < dim)
      eight = *reinterpret_cast<const EightElements*>(q + tile.source(row) * dim + chunk * 8);
    char* const panel =
        reinterpret_cast<char*>(to + (group * Cut::panels + chunk / 8) * Cut::panel);
    *reinterpret_cast<EightElements*>(panel + swizzled(row % Cut::group_rows, chunk % 8)) = eight;
  }
}

/// Zeros, by one warp, in the values that no row sees: their probability is 0, but they may be no
/// numbers.
template <int D>
__device__ __forceinline__ void clear_unseen(bfloat16* values, const KeyTile& tile) {
  using Cut = HopperCut<D>;
  constexpr int chunks = Cut::panels * 8;
  const int first = tile.first - tile.start, stop = tile.stop - tile.start;
  for (int i = lane_index(); i < Cut::keys * chunks; i += warp_size) {
    const int row = i / chunks, chunk = i % chunks;
    if (row >= first && row < stop) continue;
    char* const panel = reinterpret_cast<char*>(values + chunk / 8 * Cut::panel);
    *reinterpret_cast<EightElements*>(panel + swizzled(row, chunk % 8)) = EightElements{};
  }
  fence_async();
  __syncwarp();
}

/// The warp that copies: tile after tile into the stage that both groups are done with.
template <int D>
__device__ __forceinline__ void copy_keys(typename HopperCut<D>::Shared& shared,
                                          const KeyMaps& maps, int kv_head) {
  using Cut = HopperCut<D>;
  unsigned partial_tiles = 0;
  for (int turn = 0;; ++turn) {
    const int at = turn % Cut::stages;
    const KeyTile tile = shared.tiles[turn];
    // The first round finds the stages free: as if the phase before the first had ended.
    wait(shared.free[at], unsigned(turn / Cut::stages % 2) ^ 1);
    auto& stage = shared.stage[at];
    const bool partial = tile.first > tile.start || tile.stop < tile.start + Cut::keys;
    Barrier& v_landed = partial ? shared.partial_v : shared.v_here[at];
    if (lane_index() == 0) {
      shared.tile[at] = tile;
      if (!tile.exists()) {
        arrive(shared.k_here[at]);
      } else {
        const auto copy = [&](bfloat16* to, const TensorMap& map, Barrier& landed) {
          arrive_expecting(landed, sizeof(stage.k));
          for (int p = 0; p < Cut::panels; ++p)
            copy_panel(to + p * Cut::panel, map, landed, p * 64, kv_head, tile.start);
        };
        copy(stage.k, tile.own ? maps.k_block : maps.k_context, shared.k_here[at]);
        copy(stage.v, tile.own ? maps.v_block : maps.v_context, v_landed);
      }
    }
    if (!tile.exists()) return;
    __syncwarp();
    shared.tiles.find(turn + 2, shared.row_keys);
    if (!partial) continue;
    wait(v_landed, partial_tiles++ % 2);
    clear_unseen<D>(stage.v, tile);
    if (lane_index() == 0) arrive(shared.v_here[at]);
  }
}

/// The scores of a group's rows and a tile's keys.
template <int D>
__device__ __forceinline__ void multiply_panels(float (&score)[8][4], const bfloat16* q,
                                                const bfloat16* k) {
  using Cut = HopperCut<D>;
  begin_group_products();
#pragma unroll
  for (int column = 0; column < D; column += 16) {
    const int at = column / 64 * Cut::panel + column % 64;
    multiply_group<Cut::keys>(score, describe(q + at), describe(k + at));
  }
  finish_group_products(score);
}

/// y += p v.
template <int D>
__device__ __forceinline__ void multiply_values(float (&y)[D / 8][4],
                                                const std::uint32_t (&p)[1][4][4],
                                                const bfloat16* v) {
  using Cut = HopperCut<D>;
  begin_group_products();
#pragma unroll
  for (int k = 0; k < Cut::keys / 16; ++k)
    multiply_group_columns<D>(y, p[0][k], describe(v + k * 16 * 64, Cut::panel * 2));
  finish_group_products(y);
}

/// A group of warps that computes: 64 rows of the tile.
template <int D>
__device__ __forceinline__ void attend(typename HopperCut<D>::Shared& shared,
                                       const AttentionShape& a, const QueryTile& tile, int group,
                                       bfloat16* y, float* lse) {
  using Cut = HopperCut<D>;
  const int first = group * Cut::group_rows + int(threadIdx.x) / warp_size % 4 * 16;
  bfloat16* const q = shared.q + group * Cut::panels * Cut::panel;
  Accumulator<1, D / 8> out;
  clear<1, D / 8>(out);
  RunningSoftmax<1> softmax;
  for (int turn = 0;; ++turn) {
    const int at = turn % Cut::stages;
    const unsigned parity = unsigned(turn / Cut::stages % 2);
    wait(shared.k_here[at], parity);
    const KeyTile now = shared.tile[at];
    if (!now.exists()) break;
    const WarpKeys& keys = shared.group_keys[group][now.own ? 1 : 0];
    if (keys.sees(now)) {
      Accumulator<1, Cut::keys / 8> score;
      clear<1, Cut::keys / 8>(score);
      multiply_panels<D>(score[0], q, shared.stage[at].k);
      if (!keys.sees_all(now, Cut::keys))
        hide<1, Cut::keys / 8>(score, shared.row_keys.seen + first, now);
      softmax.template step<Cut::keys / 8, D / 8>(score, a.scale * log2_e, out);
      std::uint32_t p[1][Cut::keys / 16][4];
      round_to_left<1, Cut::keys / 8>(score, p);
      wait(shared.v_here[at], parity);
      multiply_values<D>(out[0], p, shared.stage[at].v);
    }
    arrive(shared.free[at]);
  }
  softmax.finish();
  sync_some(1 + group, Cut::group_threads);  // nobody reads q any more
  store_rows<D, 1, D>(out, softmax, q + int(threadIdx.x) / warp_size % 4 * 16 * D, tile, first, a,
                      y, lse);
}

/// Forward with products of warp groups and bulk copies.
template <int D>
__global__ void __launch_bounds__(HopperCut<D>::threads, 1)
    attention_hopper_kernel(AttentionShape a, const bfloat16* q,
                            const __grid_constant__ KeyMaps maps, bfloat16* y, float* lse) {
  if constexpr (has_hopper_instructions) {
    using Cut = HopperCut<D>;
    auto& shared = *panel_memory<typename Cut::Shared>();
    const int kv_head = int(blockIdx.y), begin = int(gridDim.x - 1 - blockIdx.x) * Cut::rows;
    const QueryTile tile(a, HeadsOfKey(a, kv_head), begin, Cut::rows);
    if (tile.size <= 0) return;
    const int group = int(threadIdx.x) / Cut::group_threads - 1;
    shared.row_keys.fill(a, tile);
    load_panels<D>(shared.q, tile, a.dim, q);
    if (threadIdx.x == 0) {
      for (int i = 0; i < Cut::stages; ++i) {
        begin_barrier(shared.k_here[i], 1);
        begin_barrier(shared.v_here[i], 1);
        begin_barrier(shared.free[i], Cut::groups * Cut::group_threads);
      }
      begin_barrier(shared.partial_v, 1);
      fence_barriers();
    }
    fence_async();
    __syncthreads();
    if (threadIdx.x / warp_size == 0) shared.tiles.start(shared.row_keys);
    if (group >= 0 && int(threadIdx.x) % Cut::group_threads < warp_size)
      fill_warp_keys(shared.group_keys[group], shared.row_keys.seen, tile, group * Cut::group_rows,
                     Cut::group_rows);
    __syncthreads();
    if (group < 0) {
      keep_registers<40>();
      if (threadIdx.x < warp_size) copy_keys<D>(shared, maps, kv_head);
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
  const KeyMaps maps{tensor_map(kv.k_context, Cut::keys), tensor_map(kv.v_context, Cut::keys),
                     tensor_map(kv.k_block, Cut::keys), tensor_map(kv.v_block, Cut::keys)};
  launch(backend.stream(), attention_hopper_kernel<D>,
         dim3(plan.query_tiles(Cut::rows), plan.used_kv_heads()), Cut::threads,
         sizeof(typename Cut::Shared) + panel_alignment, plan.shape(), q, maps, y, lse);
}

}  // namespace dflash::cuda
