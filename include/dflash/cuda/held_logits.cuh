#pragma once

#include <climits>
#include <cmath>
#include <cstdint>

#include "dflash/core/config.hpp"
#include "dflash/cuda/ptx.cuh"
#include "dflash/cuda/vector.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash::cuda {

/// A row's logits of one tile of words, in the registers of a block: read once, `width` neighbours
/// at a time. Every thread of the block calls all of it, in order.
template <int width>
class HeldLogits {
 public:
  static constexpr int each = 32;  // of a thread
  static constexpr int most_threads = 512;
  static constexpr index_t most_words = each * most_threads;
  static constexpr std::size_t scratch_bytes = 3 * warp_size * sizeof(float);

  /// Threads that hold so many words.
  static unsigned threads(index_t words) {
    return unsigned((words + each * warp_size - 1) / (each * warp_size)) * warp_size;
  }

  /// read(j, to) reads logits j to j + width; -infinity for what is none.
  template <class Read>
  __device__ __forceinline__ HeldLogits(index_t words, Read read) : words_(int(words)) {
#pragma unroll
    for (int v = 0; v < each / width; ++v) {
      float of_vector[width];
#pragma unroll
      for (int i = 0; i < width; ++i) of_vector[i] = -INFINITY;
      if (first(v) < words_) read(first(v), of_vector);
#pragma unroll
      for (int i = 0; i < width; ++i) value_[v * width + i] = of_vector[i];
    }
  }

  /// The largest of the row; NaN is passed over. Afterwards all logits have been read.
  __device__ __forceinline__ float top() const {
    float most = value_[0];
#pragma unroll
    for (int k = 1; k < each; ++k) most = fmaxf(most, value_[k]);
    float* const tops = shared_memory<float>();
    most = warp_max(most);
    if (lane() == 0) tops[warp()] = most;
    __syncthreads();
    return warp_max(lane() < warps() ? tops[lane()] : -INFINITY);
  }

  /// The first word with this logit, in this thread; INT_MAX if it has none.
  __device__ __forceinline__ int find(float logit) const {
    int found = INT_MAX;
#pragma unroll
    for (int v = each / width - 1; v >= 0; --v)
#pragma unroll
      for (int i = width - 1; i >= 0; --i)
        if (value_[v * width + i] == logit) found = first(v) + i;
    return found;
  }

  /// write(j, e) gets e^(logit - top) of words j to j + width; the sum of this thread's.
  template <class Write>
  __device__ __forceinline__ float exponentials(float top, Write write) const {
    constexpr float log2_e = 1.44269504f;
    float sum = 0;
#pragma unroll
    for (int v = 0; v < each / width; ++v) {
      float e[width];
#pragma unroll
      for (int i = 0; i < width; ++i) {
        e[i] = exp2_fast((value_[v * width + i] - top) * log2_e);
        sum += e[i];
      }
      if (first(v) < words_) write(first(v), e);
    }
    return sum;
  }

  struct Total {
    float sum;
    int first;
  };
  /// The sum of the block's sums and the smallest of its words, in the first warp.
  __device__ __forceinline__ static Total total(float sum, int found) {
    float* const sums = shared_memory<float>() + warp_size;
    int* const words = shared_memory<int>() + 2 * warp_size;
    sum = warp_sum(sum), found = warp_min(found);
    if (lane() == 0) sums[warp()] = sum, words[warp()] = found;
    __syncthreads();
    if (warp() > 0) return {};
    return {warp_sum(lane() < warps() ? sums[lane()] : 0.0f),
            warp_min(lane() < warps() ? words[lane()] : INT_MAX)};
  }

 private:
  /// Each warp has neighbouring words, so that a thread's are constant steps apart.
  __device__ __forceinline__ static int first(int vector) {
    return warp() * each * warp_size + (vector * warp_size + lane()) * width;
  }
  __device__ static int lane() { return int(threadIdx.x) % warp_size; }
  __device__ static int warp() { return int(threadIdx.x) / warp_size; }
  __device__ static int warps() { return int(blockDim.x) / warp_size; }

  int words_;
  float value_[each];
};

}  // namespace dflash::cuda
