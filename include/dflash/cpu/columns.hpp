#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// y(n, c) = x(n, first + c): some columns of every row, such as a range of heads.
template <class T>
void copy_columns(CpuBackend<T>& backend, In<T, 2> x, index_t first, Out<T, 2> y) {
  expects(first >= 0 && first + y.shape[1] <= x.shape[1] && y.shape[0] == x.shape[0],
          "copy_columns: the columns lie outside");
  const index_t width = x.shape[1], columns = y.shape[1];
  backend.for_parts(y.shape[0], columns, [=](Range part) {
    for (index_t n = part.begin; n < part.end; ++n)
      std::copy_n(x.data + n * width + first, columns, y.data + n * columns);
  });
}

/// y(n, first + c) += x(n, c): the adjoint of copy_columns.
template <class T>
void add_columns(CpuBackend<T>& backend, In<T, 2> x, index_t first, Out<T, 2> y) {
  expects(first >= 0 && first + x.shape[1] <= y.shape[1] && y.shape[0] == x.shape[0],
          "add_columns: the columns lie outside");
  const index_t width = y.shape[1], columns = x.shape[1];
  backend.for_parts(x.shape[0], columns, [=](Range part) {
    for (index_t n = part.begin; n < part.end; ++n) {
      const T* const from = x.data + n * columns;
      T* const to = y.data + n * width + first;
      for (index_t c = 0; c < columns; ++c) to[c] += from[c];
    }
  });
}

/// Merges attention over one part of the keys into what there is of the others: heads
/// [first, first + part heads) of y and lse. Before the first part y is 0 and lse -infinity.
///                         part (N, part heads, D)  part_lse (N, part heads)  y (N, heads, D)
template <class T>
void merge_attention(CpuBackend<T>& backend, In<T, 3> part, In<T, 2> part_lse, index_t first,
                     Out<T, 3> y, Out<T, 2> lse) {
  const index_t heads = part.shape[1], dim = y.shape[2];
  backend.for_parts(part.shape[0], heads * (dim + 64), [=](Range some) {
    for (index_t n = some.begin; n < some.end; ++n)
      for (index_t h = 0; h < heads; ++h) {
        T& here = lse(n, first + h);
        const T there = part_lse(n, h), top = std::max(here, there);
        if (there == -std::numeric_limits<T>::infinity()) continue;
        const T sum = top + std::log(std::exp(here - top) + std::exp(there - top));
        const T old_share = std::exp(here - sum), new_share = std::exp(there - sum);
        const T* const from = &part(n, h, 0);
        T* const to = &y(n, first + h, 0);
        for (index_t d = 0; d < dim; ++d) to[d] = old_share * to[d] + new_share * from[d];
        here = sum;
      }
  });
}

}  // namespace dflash
