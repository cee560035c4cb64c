#pragma once

// The emulator's counterpart of the library's dflash/cuda/gemm.hpp: products by the host, in the
// order of the stream.

#include <cuda_runtime.h>

#include <cstddef>
#include <type_traits>
#include <vector>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/float8.hpp"
#include "dflash/cuda/gemm_shape.hpp"

namespace dflash {

class CudaGemm {
 public:
  explicit CudaGemm(cudaStream_t stream) : stream_(stream) {}

  template <class T, class Y>
  void multiply(const GemmShape& shape, const T* a, const T* b, Y* y) {
    if constexpr (std::is_same_v<T, float8_e4m3>) shape.expect_float8(a, b);
    cuda_emulation::enqueue(stream_, [=] {
      const auto [rows, columns, depth, a_turned, b_turned, add] = shape;
      std::vector<float> sum(std::size_t(columns), 0.0f), wide(std::size_t(columns * depth), 0.0f);
      for (index_t k = 0; k < depth; ++k)
        for (index_t j = 0; j < columns; ++j)
          wide[std::size_t(k * columns + j)] =
              float(b_turned ? b[j * depth + k] : b[k * columns + j]);
      for (index_t i = 0; i < rows; ++i) {
        sum.assign(sum.size(), 0.0f);
        for (index_t k = 0; k < depth; ++k) {
          const float x = float(a_turned ? a[k * rows + i] : a[i * depth + k]);
          const float* const row = wide.data() + k * columns;
          for (index_t j = 0; j < columns; ++j) sum[std::size_t(j)] += x * row[j];
        }
        for (index_t j = 0; j < columns; ++j) {
          Y& to = y[i * columns + j];
          to = Y(sum[std::size_t(j)] + (add ? float(to) : 0.0f));
        }
      }
    });
  }

 private:
  cudaStream_t stream_;
};

}  // namespace dflash
