#pragma once

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_tile.cuh"
#include "dflash/cuda/hopper.cuh"

namespace dflash::cuda {

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

/// How attention is cut on Hopper, for a head of up to D elements: one warp copies tiles a few
/// turns ahead, two groups of four warps compute 64 rows each.
template <int D>
struct HopperCut {
  static constexpr int tile = 64, groups = 2, rows = groups * tile;
  static constexpr int group_threads = 4 * warp_size, threads = (1 + groups) * group_threads;
  static constexpr int panels = D / 64, panel = 64 * 64;  // elements of 64 rows and columns
  static constexpr int tile_size = panels * panel;
};

/// The tensors of keys and values, for bulk copies.
struct KeyMaps {
  TensorMap k_context, v_context, k_block, v_block;
};

/// The way of keys and values from the warp that copies them to the groups.
template <int D>
struct KeyRing {
  using Cut = HopperCut<D>;
  static constexpr int stages = 4;
  struct Stage {
    bfloat16 k[Cut::tile_size], v[Cut::tile_size];
  };
  Stage stage[stages];
  Barrier k_here[stages], v_here[stages], free[stages], partial;
  KeyTile tile[stages];
  TileKeys<Cut::rows> row_keys;
  KeyTiles<Cut::tile> tiles;
  WarpKeys group_keys[Cut::groups][2];

  /// All threads of the block call it; the last barrier in it lets the roles begin.
  __device__ void begin(const AttentionShape& a, const QueryTile& queries) {
    row_keys.fill(a, queries);
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages; ++i) {
        begin_barrier(k_here[i], 1);
        begin_barrier(v_here[i], 1);
        begin_barrier(free[i], Cut::groups * Cut::group_threads);
      }
      begin_barrier(partial, 1);
      fence_barriers();
    }
    fence_async();
    __syncthreads();
    const int group = int(threadIdx.x) / Cut::group_threads - 1;
    if (threadIdx.x / warp_size == 0) tiles.start(row_keys);
    if (group >= 0 && int(threadIdx.x) % Cut::group_threads < warp_size)
      fill_warp_keys(group_keys[group], row_keys.seen, queries, group * Cut::tile, Cut::tile);
    __syncthreads();
  }
};

/// Query rows as panels, by all threads of the block.
template <int D>
__device__ __forceinline__ void load_panels(bfloat16* to, const QueryTile& tile, int dim,
                                            const bfloat16* from) {
  using Cut = HopperCut<D>;
  constexpr int chunks = D / 8;
  for (int i = int(threadIdx.x); i < Cut::rows * chunks; i += Cut::threads) {
    const int row = i / chunks, chunk = i % chunks, group = row / Cut::tile;
    EightElements eight = {};
    if (row < tile.size && chunk * 8 < dim)
      eight = *reinterpret_cast<const EightElements*>(from + tile.source(row) * dim + chunk * 8);
    char* const panel =
        reinterpret_cast<char*>(to + group * Cut::tile_size + chunk / 8 * Cut::panel);
    *reinterpret_cast<EightElements*>(panel + swizzled(row % Cut::tile, chunk % 8)) = eight;
  }
}

/// Zeros, by one warp, in keys or values that no row sees: their weight is 0, but they may be no
/// numbers.
template <int D>
__device__ __forceinline__ void clear_unseen(bfloat16* values, const KeyTile& tile) {
  using Cut = HopperCut<D>;
  constexpr int chunks = Cut::panels * 8;
  const int first = tile.first - tile.start, stop = tile.stop - tile.start;
  for (int i = lane_index(); i < Cut::tile * chunks; i += warp_size) {
    const int row = i / chunks, chunk = i % chunks;
    if (row >= first && row < stop) continue;
    char* const panel = reinterpret_cast<char*>(values + chunk / 8 * Cut::panel);
    *reinterpret_cast<EightElements*>(panel + swizzled(row, chunk % 8)) = EightElements{};
  }
}

/// Begins to copy 64 rows, panel by panel.
template <int D>
__device__ __forceinline__ void copy_panels(bfloat16* to, const TensorMap& map, Barrier& landed,
                                            int head, int row) {
  using Cut = HopperCut<D>;
  for (int p = 0; p < Cut::panels; ++p)
    copy_panel(to + p * Cut::panel, map, landed, p * 64, head, row);
}

/// The warp that copies: tile after tile into the stage that both groups are done with.
template <int D>
__device__ __forceinline__ void copy_keys(KeyRing<D>& ring, const KeyMaps& maps, int kv_head) {
  using Cut = HopperCut<D>;
  constexpr unsigned bytes = Cut::tile_size * sizeof(bfloat16);
  unsigned partial_tiles = 0;
  for (int turn = 0;; ++turn) {
    const int at = turn % KeyRing<D>::stages;
    const KeyTile tile = ring.tiles[turn];
    // The first round finds the stages free: as if the phase before the first had ended.
    wait(ring.free[at], unsigned(turn / KeyRing<D>::stages % 2) ^ 1);
    auto& stage = ring.stage[at];
    const bool partial = tile.first > tile.start || tile.stop < tile.start + Cut::tile;
    if (lane_index() == 0) {
      ring.tile[at] = tile;
      if (!tile.exists()) {
        arrive(ring.k_here[at]);
      } else {
        const TensorMap& k = tile.own ? maps.k_block : maps.k_context;
        const TensorMap& v = tile.own ? maps.v_block : maps.v_context;
        if (partial) {
          arrive_expecting(ring.partial, 2 * bytes);
          copy_panels<D>(stage.k, k, ring.partial, kv_head, tile.start);
          copy_panels<D>(stage.v, v, ring.partial, kv_head, tile.start);
        } else {
          arrive_expecting(ring.k_here[at], bytes);
          copy_panels<D>(stage.k, k, ring.k_here[at], kv_head, tile.start);
          arrive_expecting(ring.v_here[at], bytes);
          copy_panels<D>(stage.v, v, ring.v_here[at], kv_head, tile.start);
        }
      }
    }
    if (!tile.exists()) return;
    __syncwarp();
    ring.tiles.find(turn + 2, ring.row_keys);
    if (!partial) continue;
    wait(ring.partial, partial_tiles++ % 2);
    clear_unseen<D>(stage.k, tile);
    clear_unseen<D>(stage.v, tile);
    fence_async();
    __syncwarp();
    if (lane_index() == 0) {
      arrive(ring.k_here[at]);
      arrive(ring.v_here[at]);
    }
  }
}

/// The products of a group's rows and those of a tile.
template <int D>
__device__ __forceinline__ void multiply_panels(float (&score)[8][4], const bfloat16* a,
                                                const bfloat16* b) {
  using Cut = HopperCut<D>;
  begin_group_products();
#pragma unroll
  for (int column = 0; column < D; column += 16) {
    const int at = column / 64 * Cut::panel + column % 64;
    multiply_group(score, describe(a + at), describe(b + at));
  }
  finish_group_products(score);
}

/// y += p v, for the rows v of a tile.
template <int D>
__device__ __forceinline__ void multiply_values(float (&y)[D / 8][4],
                                                const std::uint32_t (&p)[1][4][4],
                                                const bfloat16* v) {
  using Cut = HopperCut<D>;
  begin_group_products();
#pragma unroll
  for (int k = 0; k < Cut::tile / 16; ++k)
    multiply_group_columns(y, p[0][k], describe(v + k * 16 * 64, Cut::panel * 2));
  finish_group_products(y);
}

inline KeyMaps key_maps(const KeyValue<const bfloat16>& kv) {
  return {tensor_map(kv.k_context, 64, 1), tensor_map(kv.v_context, 64, 1),
          tensor_map(kv.k_block, 64, 1), tensor_map(kv.v_block, 64, 1)};
}

}  // namespace dflash::cuda
