#pragma once

// The CUDA backend, whole.

#include "dflash/core/operations.hpp"
#include "dflash/cuda/adamw.cuh"
#include "dflash/cuda/attention.cuh"
#include "dflash/cuda/attention_backward.cuh"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/columns.cuh"
#include "dflash/cuda/convert.cuh"
#include "dflash/cuda/elementwise.cuh"
#include "dflash/cuda/float8_head.cuh"
#include "dflash/cuda/head_dots.cuh"
#include "dflash/cuda/linear.cuh"
#include "dflash/cuda/linear_cross_entropy.cuh"
#include "dflash/cuda/linear_cross_entropy_float8.cuh"
#include "dflash/cuda/linear_cross_entropy_part.cuh"
#include "dflash/cuda/rms_norm.cuh"
#include "dflash/cuda/rms_norm_rope.cuh"
#include "dflash/cuda/rope.cuh"
#include "dflash/cuda/rows.cuh"
#include "dflash/cuda/swiglu.cuh"

namespace dflash {

static_assert(Operations<CudaBackend<float>>);
static_assert(Operations<CudaBackend<bfloat16>>);

}  // namespace dflash
