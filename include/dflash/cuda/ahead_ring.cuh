#pragma once

#include <cstddef>

#include "dflash/core/config.hpp"
#include "dflash/cuda/ptx.cuh"
#include "dflash/cuda/vector.cuh"

namespace dflash::cuda {

/// What each thread of a block has read of several arrays, some turns ahead: a ring of places in
/// shared memory, in which a thread finds only what it asked for itself.
template <int arrays, int vectors, class T>
class AheadRing {
 public:
  static constexpr int turns = sizeof(T) == 2 ? 3 : 2;
  static constexpr std::size_t bytes(int threads) {
    return std::size_t(turns * arrays * vectors) * std::size_t(threads) * sizeof(Packed<T>);
  }

  __device__ explicit AheadRing(void* memory)
      : at_(static_cast<Packed<T>*>(memory) + threadIdx.x) {}

  /// Begins to read vector i of an array for a turn.
  __device__ __forceinline__ void begin(index_t turn, int array, int i, const T* from) {
    Packed<T>* const to = place(turn, array, i);
#pragma unroll
    for (int part = 0; part < int(sizeof(*to) / 16); ++part)
      copy_async_16(reinterpret_cast<unsigned char*>(to) + 16 * part,
                    reinterpret_cast<const unsigned char*>(from) + 16 * part);
  }
  __device__ __forceinline__ static void close_turn() { copy_async_commit(); }
  /// Waits for the oldest turn of those that have begun and were not waited for: `turns` - 1.
  __device__ __forceinline__ static void wait() { copy_async_wait<turns - 2>(); }
  __device__ __forceinline__ void numbers(index_t turn, int array, int i, float (&to)[wide]) const {
    place(turn, array, i)->numbers(to);
  }

 private:
  __device__ __forceinline__ Packed<T>* place(index_t turn, int array, int i) const {
    return at_ + ((int(turn % turns) * arrays + array) * vectors + i) * int(blockDim.x);
  }
  Packed<T>* at_;
};

}  // namespace dflash::cuda
