#pragma once

#include <compare>
#include <cstdint>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// A product of row-major matrices, y = a b or y += a b.       a (rows, depth)  b (depth, columns)
struct GemmShape {
  index_t rows = 0, columns = 0, depth = 0;
  bool a_transposed = false;  // a lies in memory as (depth, rows)
  bool b_transposed = false;  // b lies in memory as (columns, depth)
  bool add = false;

  auto operator<=>(const GemmShape&) const = default;

  /// Error unless tensor cores of every kind can multiply float8 matrices of this shape: both lie
  /// along the depth, in whole vectors of 16 bytes.
  void expect_float8(const void* a, const void* b) const {
    const auto address = reinterpret_cast<std::uintptr_t>(a) | reinterpret_cast<std::uintptr_t>(b);
    expects(!a_transposed && b_transposed, "a product of float8: both must lie along the depth");
    expects(columns % 16 == 0 && depth % 16 == 0 && address % 16 == 0,
            "a product of float8: columns, depth and addresses must be multiples of 16");
  }
};

}  // namespace dflash
