#pragma once

// The emulator's counterpart of the library's dflash/cuda/tensor_map.hpp.

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash::cuda {

struct TensorMap {
  In<bfloat16, 3> tensor;
  index_t box_rows, box_heads;
};

inline TensorMap tensor_map(In<bfloat16, 3> x, index_t box_rows, index_t box_heads) {
  // As the driver does.
  expects(x.shape[1] > 0 && x.shape[2] > 0, "a tensor map was refused: it has no elements");
  return {x, box_rows, box_heads};
}

}  // namespace dflash::cuda
