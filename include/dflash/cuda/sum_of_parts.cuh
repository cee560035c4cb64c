#pragma once

#include <algorithm>

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/launch.cuh"

namespace dflash {

namespace cuda::detail {

template <class U>
__global__ void __launch_bounds__(256)
    sum_of_parts_kernel(const U* parts, index_t count, index_t n, U* sum) {
  const index_t step = index_t(gridDim.x) * blockDim.x;
  for (index_t i = index_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    U total = parts[i];
    for (index_t p = 1; p < count; ++p) total = U(total + parts[p * n + i]);
    sum[i] = total;
  }
}

}  // namespace cuda::detail

/// sum = parts(0) + parts(1) + ..., added in this order, in the order of the stream.
///                                                                  parts (P, N)  sum (N)
template <class U>
void sum_of_parts(cudaStream_t stream, View<const U, 2> parts, View<U, 1> sum) {
  expects(parts.shape[1] == sum.shape[0] && parts.shape[0] > 0, "sum_of_parts: shapes differ");
  constexpr index_t threads = 256;
  const index_t blocks = std::min<index_t>((sum.size() + threads - 1) / threads, 1 << 16);
  cuda::launch(stream, cuda::detail::sum_of_parts_kernel<U>, unsigned(blocks), unsigned(threads), 0,
               parts.data, parts.shape[0], sum.size(), sum.data);
}

}  // namespace dflash
