#pragma once

#include <algorithm>

#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/vector.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash::cuda {

namespace detail {

inline constexpr int part_groups = 16;

/// y(c) += sum over the parts, in double: each warp every 16th of them for 32 columns, then these
/// sums in order.                                                          part (parts, C)  y (C)
template <class Y>
__global__ void __launch_bounds__(part_groups* warp_size)
    add_parts_kernel(const float* part, index_t parts, index_t columns, Y* y) {
  const int lane = int(threadIdx.x) % warp_size, group = int(threadIdx.x) / warp_size;
  const index_t c = index_t(blockIdx.x) * warp_size + lane;
  double sum = 0;
  if (c < columns) {
#pragma unroll 8
    for (index_t p = group; p < parts; p += part_groups) sum += double(part[p * columns + c]);
  }
  double* const sums = shared_memory<double>();
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (group > 0 || c >= columns) return;
#pragma unroll
  for (int g = 1; g < part_groups; ++g) sum += sums[g * warp_size + lane];
  y[c] += Y(sum);
}

/// part(p, c) = sum over the rows of part p of what f adds.
template <int width, class F>
__global__ void __launch_bounds__(128)
    column_parts_kernel(F f, index_t rows, index_t each, index_t columns, float* part) {
  const index_t c = (index_t(blockIdx.x) * blockDim.x + threadIdx.x) * width;
  const index_t p = blockIdx.y;
  if (c >= columns) return;
  float sum[width] = {};
  const index_t end = (p + 1) * each < rows ? (p + 1) * each : rows;
#pragma unroll 8
  for (index_t n = p * each; n < end; ++n) f.template add<width>(n * columns + c, sum);
  store<width>(sum, part + p * columns + c);
}

}  // namespace detail

/// How sums over rows are cut into parts of `each` rows: by their number alone, so that sums are
/// the same on every device.
struct RowParts {
  index_t each, count;
  RowParts(index_t rows, index_t least, index_t most)
      : each(std::max(least, (rows + most - 1) / most)), count((rows + each - 1) / each) {}
};

/// y += the sum of parts.                                                  part (parts, C)  y (C)
template <class T>
void add_parts(CudaBackend<T>& backend, const float* part, index_t parts, index_t columns,
               float* y) {
  constexpr unsigned threads = detail::part_groups * warp_size;
  launch(backend.stream(), detail::add_parts_kernel<float>, blocks_for(columns, warp_size), threads,
         threads * sizeof(double), part, parts, columns, y);
}

/// y(c) += sum over rows n of what f adds at place n * columns + c.
template <class T, class F>
void add_column_sums(CudaBackend<T>& backend, index_t rows, index_t columns, F f, float* y) {
  if (rows == 0 || columns == 0) return;
  const RowParts parts(rows, 32, 128);
  auto part = backend.template allocate<float>(parts.count * columns);
  const bool vectors = columns % wide == 0 && f.allows(wide);
  const dim3 grid(blocks_for(columns, vectors ? 128 * wide : 128), unsigned(parts.count));
  launch(backend.stream(),
         vectors ? detail::column_parts_kernel<wide, F> : detail::column_parts_kernel<1, F>, grid,
         128u, 0, f, rows, parts.each, columns, part.data());
  add_parts(backend, part.data(), parts.count, columns, y);
}

}  // namespace dflash::cuda
