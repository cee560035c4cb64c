#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "dflash/cuda/ptx.cuh"
#include "dflash/cuda/tensor_map.hpp"

// Instructions that only Hopper has (compute capability 9.0, compiled for sm_90a): products of a
// group of four warps, and copies of whole tiles that report to a barrier in shared memory.

namespace dflash::cuda {

/// Whether this pass of the compiler may use them.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool has_hopper_instructions = true;
#else
inline constexpr bool has_hopper_instructions = false;
#endif

/// Ends the kernel with an error: where it was compiled without these instructions.
__device__ __forceinline__ void refuse() { __trap(); }

/// Bytes of one swizzled panel row, and where such a panel may begin.
inline constexpr int panel_bytes = 128, panel_alignment = 1024;

/// The block's shared memory, where a panel may begin: a kernel that has no other has it there.
template <class T>
__device__ __forceinline__ T* panel_memory() {
  T* const memory = shared_memory<T>();
  if (detail::shared_address(memory) % panel_alignment != 0) __trap();
  return memory;
}

/// Where the 16 bytes lie that are number `chunk` of a panel's row: the pattern that keeps eight
/// rows of one chunk in different banks, as bulk copies write it and products of groups read it.
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * panel_bytes + (chunk ^ row % 8) * 16;
}

/// Counts arrivals and bytes; its phases have parities 0, 1, 0, ...
struct Barrier {
  std::uint64_t state;
};

/// One thread calls it for each barrier, then fence_barriers; a block barrier must follow.
__device__ __forceinline__ void begin_barrier(Barrier& barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(detail::shared_address(&barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(detail::shared_address(&barrier))
               : "memory");
}
/// Arrives, and lets the phase wait for so many bytes of copies too.
__device__ __forceinline__ void arrive_expecting(Barrier& barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   detail::shared_address(&barrier)),
               "r"(bytes)
               : "memory");
}
/// Waits for the end of the phase of that parity.
__device__ __forceinline__ void wait(Barrier& barrier, unsigned parity) {
  unsigned done = 0;
  while (done == 0)
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(detail::shared_address(&barrier)), "r"(parity)
        : "memory");
}

/// Begins to copy the map's box at (column, head, row) to a panel; its bytes arrive at the barrier.
__device__ __forceinline__ void copy_panel(void* shared, const TensorMap& map, Barrier& barrier,
                                           int column, int head, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(detail::shared_address(shared)),
      "l"(&map.map), "r"(detail::shared_address(&barrier)), "r"(column), "r"(head), "r"(row)
      : "memory");
}

/// What this thread stored to shared memory is seen by products of groups and bulk copies that come
/// after the next barrier.
__device__ __forceinline__ void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// A barrier of `threads` threads, whole warps; `id` is not 0, which is __syncthreads.
__device__ __forceinline__ void sync_some(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Gives registers back, or takes them, for all warps of a group.
template <int count>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

/// The description of swizzled panels for products of groups. For rows times rows the panel holds
/// 64 columns, and `step` is not used; for columns of a right factor, `step` is the way from one
/// panel of 64 columns to the next, in bytes.
__device__ __forceinline__ std::uint64_t describe(const void* panel, unsigned step = 16) {
  const auto field = [](std::uint64_t bytes) { return (bytes & 0x3ffff) >> 4; };
  constexpr std::uint64_t eight_rows = 8 * panel_bytes, swizzle_128 = std::uint64_t(1) << 62;
  return field(detail::shared_address(panel)) | field(step) << 16 | field(eight_rows) << 32 |
         swizzle_128;
}

/// Before the first product that reads registers which other instructions wrote.
__device__ __forceinline__ void begin_group_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// What follows begins when x is known: the compiler would rather compute it behind a later wait,
/// when nothing is under way beside it.
__device__ __forceinline__ void settle(float x) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.nan.f32 p, %0, %0;\n"
      "@p fence.acq_rel.cta;\n}" ::"f"(x)
      : "memory");
}

/// Closes a group of products: all that began since the last.
__device__ __forceinline__ void commit_group_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until all but the newest `pending` groups of products have ended, those of c among them.
/// Until then nobody may touch c, nor write to factors in registers.
template <int pending, int N>
__device__ __forceinline__ void wait_group_products(float (&c)[N][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#pragma unroll
  for (int n = 0; n < N; ++n)  // keeps uses of c behind the wait
    asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
}

/// The description of what lies so many bytes behind.
__device__ __forceinline__ std::uint64_t behind(std::uint64_t description, unsigned bytes) {
  return description + (bytes >> 4);
}

// A product's registers must be listed one by one: rows of eight tiles of c, and their places in
// the instruction.
#define DFLASH_TILE(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define DFLASH_EIGHT_TILES(c, n)                                                          \
  DFLASH_TILE(c, n), DFLASH_TILE(c, n + 1), DFLASH_TILE(c, n + 2), DFLASH_TILE(c, n + 3), \
      DFLASH_TILE(c, n + 4), DFLASH_TILE(c, n + 5), DFLASH_TILE(c, n + 6), DFLASH_TILE(c, n + 7)
#define DFLASH_FIRST_PLACES                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DFLASH_NEXT_PLACES                                                           \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/// Begins c += a b^T, or c = a b^T, by a group of four warps, 16 rows each, which hold c as
/// multiply_add does. Both are described panels.             a (64, 16)  b (64, 16)
template <bool add>
__device__ __forceinline__ void multiply_group(float (&c)[8][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{" DFLASH_FIRST_PLACES "}, %32, %33, %34, 1, 1, 0, 0;"
      : DFLASH_EIGHT_TILES(c, 0)
      : "l"(a), "l"(b), "n"(add ? 1 : 0));
}

/// The same of twice as many rows.                           a (64, 16)  b (128, 16)
template <bool add>
__device__ __forceinline__ void multiply_group(float (&c)[16][4], std::uint64_t a,
                                               std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{" DFLASH_FIRST_PLACES ", " DFLASH_NEXT_PLACES "}, %64, %65, %66, 1, 1, 0, 0;"
      : DFLASH_EIGHT_TILES(c, 0), DFLASH_EIGHT_TILES(c, 8)
      : "l"(a), "l"(b), "n"(add ? 1 : 0));
}

/// Begins c += a b, each warp with its own a, as multiply_add takes it.       b (16, 64)
__device__ __forceinline__ void multiply_group_columns(float (&c)[8][4],
                                                       const std::uint32_t (&a)[4],
                                                       std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{" DFLASH_FIRST_PLACES "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
      : DFLASH_EIGHT_TILES(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/// The same of two panels.                                                    b (16, 128)
__device__ __forceinline__ void multiply_group_columns(float (&c)[16][4],
                                                       const std::uint32_t (&a)[4],
                                                       std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{" DFLASH_FIRST_PLACES ", " DFLASH_NEXT_PLACES "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
      : DFLASH_EIGHT_TILES(c, 0), DFLASH_EIGHT_TILES(c, 8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef DFLASH_NEXT_PLACES
#undef DFLASH_FIRST_PLACES
#undef DFLASH_EIGHT_TILES
#undef DFLASH_TILE

}  // namespace dflash::cuda
