#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// y(n, c) = x(n, first + c): some columns of every row, such as a range of heads.
template <class T>
void copy_columns(CpuBackend<T>&, In<T, 2> x, index_t first, Out<T, 2> y) {
  expects(first >= 0 && first + y.shape[1] <= x.shape[1] && y.shape[0] == x.shape[0],
          "copy_columns: the columns lie outside");
  for (index_t n = 0; n < y.shape[0]; ++n)
    std::copy_n(x.data + n * x.shape[1] + first, y.shape[1], y.data + n * y.shape[1]);
}

/// y(n, first + c) += x(n, c): the adjoint of copy_columns.
template <class T>
void add_columns(CpuBackend<T>&, In<T, 2> x, index_t first, Out<T, 2> y) {
  expects(first >= 0 && first + x.shape[1] <= y.shape[1] && y.shape[0] == x.shape[0],
          "add_columns: the columns lie outside");
  for (index_t n = 0; n < x.shape[0]; ++n)
    for (index_t c = 0; c < x.shape[1]; ++c)
      y.data[n * y.shape[1] + first + c] += x.data[n * x.shape[1] + c];
}

/// Merges attention over one part of the keys into what there is of the others: heads
/// [first, first + part heads) of y and lse. Before the first part y is 0 and lse -infinity.
///                         part (N, part heads, D)  part_lse (N, part heads)  y (N, heads, D)
template <class T>
void merge_attention(CpuBackend<T>&, In<T, 3> part, In<T, 2> part_lse, index_t first, Out<T, 3> y,
                     Out<T, 2> lse) {
  const index_t dim = y.shape[2];
  for (index_t n = 0; n < part.shape[0]; ++n)
    for (index_t h = 0; h < part.shape[1]; ++h) {
      T& here = lse(n, first + h);
      const T there = part_lse(n, h), top = std::max(here, there);
      if (there == -std::numeric_limits<T>::infinity()) continue;
      const T sum = top + std::log(std::exp(here - top) + std::exp(there - top));
      const T old_share = std::exp(here - sum), new_share = std::exp(there - sum);
      for (index_t d = 0; d < dim; ++d)
        y(n, first + h, d) = old_share * y(n, first + h, d) + new_share * part(n, h, d);
      here = sum;
    }
}

}  // namespace dflash
