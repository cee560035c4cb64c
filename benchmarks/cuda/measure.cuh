#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dflash/core/bfloat16.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/linear.cuh"

namespace dflash_benchmark {

using dflash::index_t;

/// Number i of a stream of numbers between -1 and 1.
DFLASH_HOST_DEVICE inline float number(std::uint64_t i, std::uint64_t key) {
  std::uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u + key * 0xd1b54a32d192ed03u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return float(x >> 40) * 0x1p-23f - 1;
}

template <class T>
__global__ void random_kernel(T* x, index_t n, float scale, std::uint64_t key) {
  for (index_t i = index_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += index_t(gridDim.x) * blockDim.x)
    x[i] = T(float(dflash::bfloat16(scale * number(std::uint64_t(i), key))));
}

/// Numbers of bfloat16 between -scale and scale, the same for every type.
template <class T, class U>
void randomize(dflash::CudaBackend<T>& backend, U* x, index_t n, float scale, std::uint64_t key) {
  dflash::cuda::launch(backend.stream(), random_kernel<U>, 4096u, 256u, 0, x, n, scale, key);
}

/// The median of f's time on the device, in milliseconds.
template <class T, class F>
double milliseconds(dflash::CudaBackend<T>& backend, int times, F f) {
  using dflash::cuda_expects;
  constexpr int untimed = 3;  // the first ones load kernels and choose algorithms
  cudaEvent_t start, stop;
  cuda_expects(cudaEventCreate(&start), "an event");
  cuda_expects(cudaEventCreate(&stop), "an event");
  std::vector<float> measured;
  for (int i = 0; i < times + untimed; ++i) {
    cuda_expects(cudaEventRecord(start, backend.stream()), "an event");
    f();
    cuda_expects(cudaEventRecord(stop, backend.stream()), "an event");
    cuda_expects(cudaEventSynchronize(stop), "an event");
    float ms = 0;
    cuda_expects(cudaEventElapsedTime(&ms, start, stop), "an event");
    if (i >= untimed) measured.push_back(ms);
  }
  backend.synchronize();
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  std::sort(measured.begin(), measured.end());
  return double(measured[measured.size() / 2]);
}

/// What one product of 8192 x 8192 x 8192 reaches, in TFLOP/s.
inline double large_product_teraflops(dflash::CudaBackend<dflash::bfloat16>& backend, int times) {
  constexpr index_t side = 8192;
  dflash::Tensor<dflash::CudaBackend<dflash::bfloat16>, dflash::bfloat16, 2> x(backend,
                                                                               {side, side}),
      w(backend, {side, side}), y(backend, {side, side});
  randomize(backend, x.view().data, x.size(), 0.5f, 1);
  randomize(backend, w.view().data, w.size(), 0.5f, 2);
  return 2.0 * side * side * side * 1e-9 /
         milliseconds(backend, times, [&] { linear(backend, x.view(), w.view(), y.view()); });
}

}  // namespace dflash_benchmark
