#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/convert.hpp"
#include "dflash/cpu/gemm.hpp"

namespace dflash {

namespace detail {

/// What a byte is worth less than as the highest of a whole number, where it needs no shift back:
/// a power of two, so that sums have the same digits.
inline constexpr float int8_unit = 0x1p-24f;

/// a in floats, b in quads of bytes, whose scales and unit come later.
template <int Bytes>
struct QuadStep {
  static constexpr bool long_steps = true;
  using Scalar = float;
  using A = float;
  using B = int8_quad;
  using V = Vector<float, Bytes>;
  struct Factor {
    typename V::Register part[4];
  };
  [[gnu::always_inline]] static void load(const B* panel, Factor& b) {
    using Numbers = Vector<std::int32_t, Bytes>;
    constexpr std::int32_t highest = -(1 << 24);
    const auto bits = *(const typename Numbers::Memory*)panel;
    b.part[0] = __builtin_convertvector(bits << 24, typename V::Register);
    b.part[1] = __builtin_convertvector(bits << 16 & highest, typename V::Register);
    b.part[2] = __builtin_convertvector(bits << 8 & highest, typename V::Register);
    b.part[3] = __builtin_convertvector(bits & highest, typename V::Register);
  }
  [[gnu::always_inline]] static void multiply(const A* a, const Factor& b,
                                              typename V::Register& sum) {
    sum = a[0] * b.part[0] + sum;
    sum = a[1] * b.part[1] + sum;
    sum = a[2] * b.part[2] + sum;
    sum = a[3] * b.part[3] + sum;
  }
};

inline KernelOf<QuadStep<16>> int8_kernel(CpuPath path) {
#if defined(__x86_64__)
  if (path >= CpuPath::avx512) return {path, 8, 16, gemm_table<QuadStep<64>, Avx512Tile, 8>.data()};
  if (path == CpuPath::avx2) return {path, 2, 8, gemm_table<QuadStep<32>, Avx2Tile, 2>.data()};
#endif
  return {path, 2, 4, gemm_table<QuadStep<16>, PortableTile, 2>.data()};
}

/// The scale of a row: its largest number becomes 127. 0 if all are 0.
inline float int8_scale(const float* row, index_t k) {
  float most = 0;
  for (index_t i = 0; i < k; ++i) most = std::max(most, std::abs(row[i]));
  return most / 127;
}

/// Numbers [4 * at, ...) of a row in units of its scale, zeros behind its end.
inline int8_quad int8_quad_of(const float* row, index_t k, index_t at, float scale) {
  std::uint32_t quad = 0;
  for (index_t i = 4 * at; i < std::min(k, 4 * at + 4); ++i) {
    const auto number = scale > 0 ? std::int32_t(std::lrintf(row[i] / scale)) : 0;
    quad |= (std::uint32_t(number) & 0xff) << (8 * (i - 4 * at));
  }
  return int8_quad(quad);
}

}  // namespace detail

/// w in whole numbers up to 127 and a scale for each row, in the order in which products read them:
/// a quarter of the memory of floats. Products with it take place in float, whatever the backend's
/// precision. A copy: w may go.                                                      w (O, I)
template <std::same_as<float> T>
typename CpuBackend<T>::FrozenMatrix freeze_int8(CpuBackend<T>& backend, InRows<T> w) {
  const index_t rows = w.shape[0], k = w.shape[1];
  const auto kernel = detail::int8_kernel(backend.path());
  const index_t panel = kernel.panel_columns(), depth = kernel.depth(k);
  typename CpuBackend<T>::FrozenMatrix frozen;
  frozen.rows = rows, frozen.columns = k;
  frozen.path = backend.path(), frozen.precision = backend.precision();
  frozen.quads = backend.template allocate<detail::int8_quad>(kernel.padded(rows) * depth);
  frozen.scales = backend.template allocate<float>(rows);
  auto scratch = backend.template allocate<float>(backend.threads() * k);
  backend.parallel_for(kernel.panels(rows), rows * k, [&](index_t i, int thread) {
    const Range some{i * panel, std::min(rows, (i + 1) * panel)};
    const index_t width = kernel.width(some.size());
    detail::int8_quad* const to = frozen.quads.data() + some.begin * depth;
    std::fill_n(to, width * depth, detail::int8_quad(0));
    for (index_t n = some.begin; n < some.end; ++n) {
      float* const row = scratch.data() + thread * k;
      w.visit([&](const auto& all) { detail::convert_elements(all.data + n * k, k, row); });
      const float scale = detail::int8_scale(row, k);
      frozen.scales.data()[n] = scale * detail::int8_unit;
      for (index_t at = 0; at < depth; ++at)
        to[at * width + n - some.begin] = detail::int8_quad_of(row, k, at, scale);
    }
  });
  return frozen;
}

}  // namespace dflash
