#pragma once

// The emulator's counterpart of the library's dflash/cuda/ptx.cuh: the same names, the same
// meaning.

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/float8.hpp"

namespace dflash::cuda {

template <class T = unsigned char>
T* shared_memory() {
  return static_cast<T*>(cuda_emulation::shared_memory());
}

inline void copy_async_16(void* shared, const void* global, int bytes = 16) {
  cuda_emulation::copy_async(shared, global, std::size_t(bytes), std::size_t(16 - bytes));
}
template <int bytes>
void copy_async(void* shared, const void* global) {
  static_assert(bytes == 4 || bytes == 8);
  cuda_emulation::copy_async(shared, global, bytes, 0);
}
inline void copy_async_commit() { cuda_emulation::commit_copies(); }
template <int pending>
void copy_async_wait() {
  cuda_emulation::wait_copies(pending);
}

namespace detail {
struct MatrixRow {
  std::uint16_t element[8];
};
inline MatrixRow matrix_row(const void* at) {
  if (reinterpret_cast<std::uintptr_t>(at) % 16 != 0)
    throw cuda_emulation::Misuse("load_matrices: a row is not aligned to 16 bytes");
  MatrixRow row;
  std::memcpy(&row, at, sizeof row);
  return row;
}
inline std::uint32_t pair(std::uint16_t low, std::uint16_t high) {
  return std::uint32_t(high) << 16 | low;
}
inline float element(std::uint32_t pair, unsigned which) {
  return std::bit_cast<float>(which == 0 ? pair << 16 : pair & 0xffff0000u);
}
}  // namespace detail

inline void load_matrices(std::uint32_t (&to)[4], const void* row) {
  const auto mine = detail::matrix_row(row);
  const cuda_emulation::Gathered all(~0u, &mine, sizeof mine, "load_matrices");
  const unsigned lane = cuda_emulation::lane();
  for (unsigned m = 0; m < 4; ++m) {
    const auto from = all.from<detail::MatrixRow>(8 * m + lane / 4);
    to[m] = detail::pair(from.element[2 * (lane % 4)], from.element[2 * (lane % 4) + 1]);
  }
}

inline void load_matrices_transposed(std::uint32_t (&to)[4], const void* row) {
  const auto mine = detail::matrix_row(row);
  const cuda_emulation::Gathered all(~0u, &mine, sizeof mine, "load_matrices_transposed");
  const unsigned lane = cuda_emulation::lane();
  for (unsigned m = 0; m < 4; ++m) {
    const unsigned first = 8 * m + 2 * (lane % 4);
    to[m] = detail::pair(all.from<detail::MatrixRow>(first).element[lane / 4],
                         all.from<detail::MatrixRow>(first + 1).element[lane / 4]);
  }
}

inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Given {
    std::uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  const cuda_emulation::Gathered all(~0u, &mine, sizeof mine, "multiply_add");
  const unsigned lane = cuda_emulation::lane(), g = lane / 4;
  for (unsigned part = 0; part < 4; ++part) {  // columns k of a pair of lanes' elements
    const auto of_a = all.from<Given>(4 * g + part);
    for (unsigned j = 0; j < 2; ++j) {
      const auto of_b = all.from<Given>(4 * (2 * (lane % 4) + j) + part);
      for (unsigned half = 0; half < 2; ++half)
        for (unsigned k = 0; k < 2; ++k) {
          const float y = detail::element(of_b.b[half], k);
          c[j] += detail::element(of_a.a[2 * half], k) * y;
          c[2 + j] += detail::element(of_a.a[2 * half + 1], k) * y;
        }
    }
  }
}

inline std::uint32_t pack_bfloat16(float low, float high) {
  return detail::pair(bfloat16(low).bits, bfloat16(high).bits);
}

inline std::uint32_t pack_float8(float a, float b, float c, float d) {
  const auto bits = [](float x) {
    constexpr float top = float8_e4m3::largest;
    return std::uint32_t(float8_e4m3(x != x ? x : std::clamp(x, -top, top)).bits);
  };
  return bits(a) | bits(b) << 8 | bits(c) << 16 | bits(d) << 24;
}

inline float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

}  // namespace dflash::cuda
