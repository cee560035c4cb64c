#pragma once

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_tile.cuh"
#include "dflash/cuda/hopper.cuh"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/memory.hpp"
#include "dflash/cuda/stream.hpp"

namespace dflash::cuda {

template <class Answer>
__global__ void answer_hopper_kernel(Answer* answer) {
  *answer = has_hopper_instructions;
}

/// Whether the current device is a Hopper, and the kernels that it runs were compiled for sm_90a.
inline bool runs_hopper_kernels() {
  int device = 0;
  cudaDeviceProp properties;
  cuda_expects(cudaGetDevice(&device), "the CUDA device");
  cuda_expects(cudaGetDeviceProperties(&properties, device), "the CUDA device");
  if (properties.major != 9) return false;
  const PinnedMemory answer(sizeof(int));
  {
    const CudaStream stream;
    launch(stream.get(), answer_hopper_kernel<int>, 1u, 1u, 0,
           reinterpret_cast<int*>(answer.data()));
    cuda_expects(cudaStreamSynchronize(stream.get()), "the kernels for Hopper");
  }
  return *reinterpret_cast<const int*>(answer.data()) != 0;
}

/// Whether this device and problem are some that the kernels for Hopper can do.
inline bool hopper_attends(const AttentionShape& a) {
  static const bool hopper = runs_hopper_kernels();
  return hopper && a.vectors && a.dim <= 128;
}

/// How attention is cut on Hopper, for a head of up to D elements: four warps bring what two groups
/// of four warps compute with, 64 rows each.
template <int D>
struct HopperCut {
  static constexpr int tile = 64, groups = 2, rows = groups * tile;
  static constexpr int group_warps = 4, group_threads = group_warps * warp_size;
  static constexpr int threads = (1 + groups) * group_threads;
  static constexpr int panels = D / 64, panel = 64 * 64;  // elements of 64 rows and columns
  static constexpr int tile_size = panels * panel;
};

/// The tensors of keys and values, for bulk copies.
struct KeyMaps {
  TensorMap k_context, v_context, k_block, v_block;
};

/// For copies of so many keys at once.
inline KeyMaps key_maps(const KeyValue<const bfloat16>& kv, int keys) {
  return {tensor_map(kv.k_context, keys, 1), tensor_map(kv.v_context, keys, 1),
          tensor_map(kv.k_block, keys, 1), tensor_map(kv.v_block, keys, 1)};
}

/// Begins to copy rows, as many as a box of the map has, panel by panel.
template <int D, int Rows = 64>
__device__ __forceinline__ void copy_panels(bfloat16* to, const TensorMap& map, Barrier& landed,
                                            int head, int row) {
  for (int p = 0; p < HopperCut<D>::panels; ++p)
    copy_panel(to + p * Rows * 64, map, landed, p * 64, head, row);
}

/// Begins to copy query rows to panels, by `threads` threads of which this is number `thread`.
template <int D>
__device__ __forceinline__ void load_panels(bfloat16* to, const QueryTile& tile, int dim,
                                            const bfloat16* from, int thread, int threads) {
  using Cut = HopperCut<D>;
  constexpr int chunks = D / 8;
  const int chunk = thread % chunks;
  char* const panel = reinterpret_cast<char*>(to + chunk / 8 * Cut::panel);
  from += chunk * 8;
#pragma unroll 2
  for (int row = thread / chunks; row < Cut::rows; row += threads / chunks) {
    const bool here = row < tile.size && chunk * 8 < dim;
    copy_async_16(panel + row / Cut::tile * int(Cut::tile_size * sizeof(bfloat16)) +
                      swizzled(row % Cut::tile, chunk % 8),
                  here ? from + tile.source(row) * dim : nullptr, here ? 16 : 0);
  }
}

/// A place in a ring, and the parity of its barriers' phase this time round.
template <int count>
struct RingPlace {
  int at = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++at < count) return;
    at = 0;
    parity ^= 1;
  }
};

/// Which warp of its block a thread belongs to; the compiler sees that all its lanes agree.
__device__ __forceinline__ int warp_index() {
  return __shfl_sync(whole_warp, int(threadIdx.x) / warp_size, 0);
}

/// Arrives for a whole warp, once all its lanes are here.
__device__ __forceinline__ void arrive_as_warp(Barrier& barrier) {
  __syncwarp();
  if (lane_index() == 0) arrive(barrier);
}

/// Begins c = a b^T, of described panels.                  a (64, D)  b (Rows, D)
template <int D, int N, int Rows = N * 8>
__device__ __forceinline__ void multiply_panels(float (&c)[N][4], std::uint64_t a,
                                                std::uint64_t b) {
  multiply_group<false>(c, a, b);
#pragma unroll
  for (int k = 1; k < D / 16; ++k)
    multiply_group<true>(c, behind(a, (k / 4 * 64 * 64 + k % 4 * 16) * 2),
                         behind(b, (k / 4 * Rows * 64 + k % 4 * 16) * 2));
}

/// Begins c += a b, of panels as describe_values has them.    a (64, 16 K)  b (16 K, D)
template <int D, int K>
__device__ __forceinline__ void multiply_values(float (&c)[D / 8][4],
                                                const std::uint32_t (&a)[1][K][4],
                                                std::uint64_t b) {
#pragma unroll
  for (int k = 0; k < K; ++k) multiply_group_columns(c, a[0][k], behind(b, k * 16 * panel_bytes));
}
/// The description of `Rows` rows whose columns are those of the product.
template <int Rows>
__device__ __forceinline__ std::uint64_t describe_values(const void* panels) {
  return describe(panels, Rows * panel_bytes);
}

}  // namespace dflash::cuda
