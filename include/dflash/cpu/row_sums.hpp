#pragma once

#include <algorithm>

#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash::detail {

/// y(c) += sum over the rows of what add_rows(range of rows, sum) adds to sum[c]: a few rows at a
/// time in T, and these sums in double. The ranges depend on the number of rows alone, so that
/// threads do not change the sum.
template <class T, class F>
void add_row_sums(CpuBackend<T>& backend, index_t rows, index_t columns, T* y, F add_rows) {
  constexpr index_t few = 32;
  const index_t parts = std::clamp<index_t>(rows / 64, 1, 32);
  auto sums = backend.template allocate<double>(parts * columns);
  auto sums_of_few = backend.template allocate<T>(parts * columns);
  backend.parallel_for(parts, rows * columns, [&](index_t i, int) {
    double* const sum = sums.data() + i * columns;
    T* const some = sums_of_few.data() + i * columns;
    std::fill_n(sum, columns, 0.0);
    const index_t end = rows * (i + 1) / parts;
    for (index_t n = rows * i / parts; n < end; n += few) {
      std::fill_n(some, columns, T(0));
      add_rows(Range{n, std::min(n + few, end)}, some);
      on_path(
          backend.path(), [=]() __attribute__((always_inline)) {
            for (index_t c = 0; c < columns; ++c) sum[c] += double(some[c]);
          });
    }
  });
  for (index_t i = 1; i < parts; ++i)
    for (index_t c = 0; c < columns; ++c) sums.data()[c] += sums.data()[i * columns + c];
  for (index_t c = 0; c < columns; ++c) y[c] += T(sums.data()[c]);
}

}  // namespace dflash::detail
