#pragma once

#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#ifndef __CUDACC__
#error "dflash's .cuh headers hold kernels: compile them with nvcc"
#endif

// Every instruction that C++ has no word for, by name. The kernels use no other inline assembly.

namespace dflash::cuda {

/// The block's shared memory, whose size the launch gave; aligned to 128 bytes.
template <class T = unsigned char>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(128) unsigned char dflash_shared_memory[];
  return reinterpret_cast<T*>(dflash_shared_memory);
}

namespace detail {
__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}
}  // namespace detail

/// Begins to copy 16 bytes from global to shared memory, both aligned to 16: the first `bytes` from
/// there, the others become zero. With 0 bytes nothing is read.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int bytes = 16) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(detail::shared_address(shared)),
      "l"(global), "r"(bytes)
      : "memory");
}

/// Begins to copy 4 or 8 bytes, both places aligned to as many.
template <int bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  static_assert(bytes == 4 || bytes == 8);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(detail::shared_address(shared)),
               "l"(global), "n"(bytes)
               : "memory");
}

/// Closes this thread's group of copies: all that began since the last.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until all but the newest `pending` groups of this thread have landed. Others see them only
/// after a barrier.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/// Four 8 x 8 matrices of 16-bit elements: lane i gives the address of row i % 8 of matrix i / 8,
/// and gets of each matrix elements 2 (lane % 4) and the next of row lane / 4.
__device__ __forceinline__ void load_matrices(std::uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(detail::shared_address(row))
               : "memory");
}

/// The same of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(detail::shared_address(row))
               : "memory");
}

/// c += a b by one warp, bfloat16 in and float32 out.       a (16, 16)  b (16, 8)  c (16, 8)
/// With g = lane / 4 and t = 2 (lane % 4) a lane holds a(g, t), a(g + 8, t), a(g, t + 8),
/// a(g + 8, t + 8), each with its right neighbour; b(t, g), b(t + 8, g), each with the one below;
/// c(g, t), c(g, t + 1), c(g + 8, t), c(g + 8, t + 1).
__device__ __forceinline__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4],
                                             const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Two floats as bfloat16, rounded to nearest even, the first in the lower half.
__device__ __forceinline__ std::uint32_t pack_bfloat16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// Four floats as float8_e4m3, rounded to nearest even, the first in the lowest byte; what is
/// larger than the largest value becomes that, NaN stays NaN.
__device__ __forceinline__ std::uint32_t pack_float8(float a, float b, float c, float d) {
  const auto pair = [](float low, float high) {
    return std::uint32_t(
        __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3));
  };
  return pair(a, b) | pair(c, d) << 16;
}

/// 2^x, to about two units in the last place; results below the normal numbers are zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace dflash::cuda
