#pragma once

#include <algorithm>

#include "dflash/cpu/backend.hpp"

namespace dflash::detail {

/// y(c) += sum over n of what add_row(n, sum) adds to sum[c], in double. The rows are cut into
/// parts that depend on their number alone, so that threads do not change the sum.
template <class T, class F>
void add_row_sums(CpuBackend<T>& backend, index_t rows, index_t columns, T* y, F add_row) {
  const index_t parts = std::clamp<index_t>(rows / 64, 1, 32);
  auto sums = backend.template allocate<double>(parts * columns);
  backend.parallel_for(parts, rows * columns, [&](index_t i, int) {
    double* const sum = sums.data() + i * columns;
    std::fill_n(sum, columns, 0.0);
    for (index_t n = rows * i / parts; n < rows * (i + 1) / parts; ++n) add_row(n, sum);
  });
  for (index_t i = 1; i < parts; ++i)
    for (index_t c = 0; c < columns; ++c) sums.data()[c] += sums.data()[i * columns + c];
  for (index_t c = 0; c < columns; ++c) y[c] += T(sums.data()[c]);
}

}  // namespace dflash::detail
