#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cuda/expects.hpp"

namespace dflash::cuda {

/// How bulk copies find boxes of 64 columns, some heads and some rows of a tensor of heads; what
/// lies outside the tensor is copied as zeros. Passed to kernels by value, as __grid_constant__.
struct TensorMap {
  CUtensorMap map;
};

/// The map of x, whose rows start at multiples of 16 bytes.                   x (N, heads, D)
inline TensorMap tensor_map(In<bfloat16, 3> x, index_t box_rows, index_t box_heads) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cuda_expects(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                  cudaEnableDefault, &found),
                 "the driver's tensor maps");
    return reinterpret_cast<Encode>(function);
  }();
  const cuuint64_t heads = cuuint64_t(x.shape[1]), dim = cuuint64_t(x.shape[2]);
  const cuuint64_t sizes[] = {dim, heads, cuuint64_t(std::max<index_t>(x.shape[0], 1))};
  const cuuint64_t steps[] = {dim * sizeof(bfloat16), heads * dim * sizeof(bfloat16)};
  const cuuint32_t box[] = {64, cuuint32_t(box_heads), cuuint32_t(box_rows)}, every[] = {1, 1, 1};
  TensorMap result;
  const CUresult status =
      encode(&result.map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<bfloat16*>(x.data), sizes,
             steps, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  expects(status == CUDA_SUCCESS,
          "a tensor map was refused: its rows must start at multiples of 16 bytes");
  return result;
}

}  // namespace dflash::cuda
