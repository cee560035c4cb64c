#pragma once

#include <cmath>

#include "dflash/core/operations.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/each.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash {

namespace cuda::detail {

struct AdamWUpdate {
  float keep, beta1, beta2, rest1, rest2, rate, root, eps, scale;

  explicit AdamWUpdate(const AdamWStep& step)
      : keep(float(1 - step.rate * step.decay)),
        beta1(float(step.beta1)),
        beta2(float(step.beta2)),
        rest1(float(1 - step.beta1)),
        rest2(float(1 - step.beta2)),
        rate(float(step.rate / step.correction1)),
        root(float(std::sqrt(step.correction2))),
        eps(float(step.eps)),
        scale(float(step.gradient_scale)) {}

  __device__ void operator()(float gradient, float& weight, float& m, float& v) const {
    const float g = gradient * scale;
    m = beta1 * m + rest1 * g;
    v = beta2 * v + rest2 * (g * g);
    weight = weight * keep - rate * m / (sqrtf(v) / root + eps);
  }
  __device__ void operator()(float gradient, float& master, float& m, float& v,
                             float& weight) const {
    (*this)(gradient, master, m, v);
    weight = master;
  }
};

inline constexpr index_t squares_of_a_block = 1 << 15;

template <int width, class X>
__global__ void __launch_bounds__(256) sum_of_squares_kernel(const X* x, index_t n, double* part) {
  const index_t first = index_t(blockIdx.x) * squares_of_a_block,
                last = first + squares_of_a_block < n ? first + squares_of_a_block : n;
  double sum = 0;
#pragma unroll 4
  for (index_t i = first + index_t(threadIdx.x) * width; i < last; i += blockDim.x * width) {
    float v[width];
    load<width>(x + i, v);
#pragma unroll
    for (int j = 0; j < width; ++j) sum += double(v[j]) * double(v[j]);
  }
  sum = block_sum(sum, shared_memory<double>());
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

/// In one block.
template <class S>
__global__ void __launch_bounds__(1024) sum_kernel(const S* part, index_t parts, S* to) {
  S sum = 0;
#pragma unroll 8
  for (index_t i = threadIdx.x; i < parts; i += blockDim.x) sum += part[i];
  sum = block_sum(sum, shared_memory<S>());
  if (threadIdx.x == 0) *to = sum;
}

}  // namespace cuda::detail

/// One AdamW step in one pass over memory.                 gradient, weight, m, v (n)
template <class T>
void adamw(CudaBackend<T>& backend, In<float, 1> gradient, AdamWStep step, Out<float, 1> weight,
           Out<float, 1> m, Out<float, 1> v) {
  const index_t size = gradient.shape[0];
  expects(weight.shape[0] == size && m.shape[0] == size && v.shape[0] == size,
          "adamw: shapes differ");
  cuda::each(backend.stream(), size, cuda::detail::AdamWUpdate(step), cuda::read(gradient.data),
             cuda::update(weight.data), cuda::update(m.data), cuda::update(v.data));
}

/// The same, and weight = master, rounded, in that pass.   gradient, master, m, v, weight (n)
template <class T>
void adamw(CudaBackend<T>& backend, In<float, 1> gradient, AdamWStep step, Out<float, 1> master,
           Out<float, 1> m, Out<float, 1> v, Out<T, 1> weight) {
  const index_t size = gradient.shape[0];
  expects(master.shape[0] == size && m.shape[0] == size && v.shape[0] == size &&
              weight.shape[0] == size,
          "adamw: shapes differ");
  cuda::each(backend.stream(), size, cuda::detail::AdamWUpdate(step), cuda::read(gradient.data),
             cuda::update(master.data), cuda::update(m.data), cuda::update(v.data),
             cuda::write(weight.data));
}

/// Sum of squares, in double, in parts that depend on the size alone. Waits for the device.
template <class T>
double sum_of_squares(CudaBackend<T>& backend, In<float, 1> x) {
  const index_t n = x.shape[0];
  if (n == 0) return 0;
  const unsigned parts = cuda::blocks_for(n, cuda::detail::squares_of_a_block);
  auto sums = backend.template allocate<double>(index_t(parts) + 1);
  constexpr std::size_t scratch = 32 * sizeof(double);
  const bool vectors = n % 4 == 0 && cuda::is_aligned(x.data, 4);
  cuda::launch(backend.stream(),
               vectors ? cuda::detail::sum_of_squares_kernel<4, float>
                       : cuda::detail::sum_of_squares_kernel<1, float>,
               parts, 256u, scratch, x.data, n, sums.data());
  cuda::launch(backend.stream(), cuda::detail::sum_kernel<double>, 1u, 1024u, scratch, sums.data(),
               index_t(parts), sums.data() + parts);
  double sum = 0;
  backend.download(sums.data() + parts, &sum, 1);
  return sum;
}

}  // namespace dflash
