#pragma once

#include <compare>

#include "dflash/core/config.hpp"

namespace dflash {

/// A product of row-major matrices, y = a b or y += a b.       a (rows, depth)  b (depth, columns)
struct GemmShape {
  index_t rows = 0, columns = 0, depth = 0;
  bool a_transposed = false;  // a lies in memory as (depth, rows)
  bool b_transposed = false;  // b lies in memory as (columns, depth)
  bool add = false;

  auto operator<=>(const GemmShape&) const = default;
};

}  // namespace dflash
