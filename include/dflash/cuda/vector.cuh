#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/config.hpp"
#include "dflash/cuda/ptx.cuh"

namespace dflash::cuda {

/// Elements that one thread moves at once where addresses allow it: 16 bytes of bfloat16, 32 of
/// float, 8 of whole numbers of a byte.
inline constexpr int wide = 8;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return float(x); }
__device__ __forceinline__ float to_float(std::int8_t x) { return float(x); }

/// x in the type of `to`, rounded to nearest even.
__device__ __forceinline__ void store(float x, float* to) { *to = x; }
__device__ __forceinline__ void store(float x, bfloat16* to) {
  to->bits = static_cast<std::uint16_t>(pack_bfloat16(x, 0.0f));
}

/// Whether `width` elements may be moved at once from here on, and from every multiple of `width`.
template <class T>
bool is_aligned(const T* at, int width) {
  const std::size_t bytes = std::size_t(width) * sizeof(T),
                    vector = std::min<std::size_t>(16, bytes);
  return width == 1 || (bytes % vector == 0 && reinterpret_cast<std::uintptr_t>(at) % vector == 0);
}

template <int width, class T>
__device__ __forceinline__ void load(const T* from, float (&to)[width]) {
  using Bare = std::remove_const_t<T>;
  if constexpr (width == 1) {
    to[0] = to_float(*from);
  } else if constexpr (std::is_same_v<Bare, float>) {
    static_assert(width % 4 == 0);
#pragma unroll
    for (int i = 0; i < width / 4; ++i) {
      const float4 v = reinterpret_cast<const float4*>(from)[i];
      to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
    }
  } else if constexpr (std::is_same_v<Bare, std::int8_t>) {
    static_assert(width == 8);
    const uint2 v = *reinterpret_cast<const uint2*>(from);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      to[i] = float(std::int8_t((i < 4 ? v.x : v.y) >> (8 * (i % 4)) & 0xff));
  } else {
    static_assert(width % 8 == 0 && sizeof(Bare) == 2);
#pragma unroll
    for (int i = 0; i < width / 8; ++i) {
      const uint4 v = reinterpret_cast<const uint4*>(from)[i];
      const std::uint32_t pairs[] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to[8 * i + 2 * j] = __uint_as_float(pairs[j] << 16);
        to[8 * i + 2 * j + 1] = __uint_as_float(pairs[j] & 0xffff0000u);
      }
    }
  }
}

/// `wide` numbers as they lie in memory: of bfloat16 in half the registers of their floats.
template <class T>
struct Packed {
  using Part = std::conditional_t<std::is_same_v<T, float>, float4, uint4>;
  Part part[wide * sizeof(T) / sizeof(Part)];

  __device__ __forceinline__ void read(const T* from) {
#pragma unroll
    for (int i = 0; i < int(sizeof part / sizeof *part); ++i)
      part[i] = reinterpret_cast<const Part*>(from)[i];
  }
  __device__ __forceinline__ void numbers(float (&to)[wide]) const {
    load<wide>(reinterpret_cast<const T*>(part), to);
  }
};

template <int width, class T>
__device__ __forceinline__ void store(const float (&from)[width], T* to) {
  if constexpr (width == 1) {
    store(from[0], to);
  } else if constexpr (std::is_same_v<T, float>) {
#pragma unroll
    for (int i = 0; i < width / 4; ++i)
      reinterpret_cast<float4*>(to)[i] =
          make_float4(from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]);
  } else if constexpr (width == 4) {
    *reinterpret_cast<uint2*>(to) =
        make_uint2(pack_bfloat16(from[0], from[1]), pack_bfloat16(from[2], from[3]));
  } else {
    static_assert(width % 8 == 0);
#pragma unroll
    for (int i = 0; i < width / 8; ++i)
      reinterpret_cast<uint4*>(to)[i] = make_uint4(pack_bfloat16(from[8 * i], from[8 * i + 1]),
                                                   pack_bfloat16(from[8 * i + 2], from[8 * i + 3]),
                                                   pack_bfloat16(from[8 * i + 4], from[8 * i + 5]),
                                                   pack_bfloat16(from[8 * i + 6], from[8 * i + 7]));
  }
}

}  // namespace dflash::cuda
