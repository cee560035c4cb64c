#pragma once

// The CPU backend, whole.

#include "dflash/core/operations.hpp"
#include "dflash/cpu/adamw.hpp"
#include "dflash/cpu/attention.hpp"
#include "dflash/cpu/attention_backward.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/columns.hpp"
#include "dflash/cpu/elementwise.hpp"
#include "dflash/cpu/linear.hpp"
#include "dflash/cpu/linear_cross_entropy.hpp"
#include "dflash/cpu/linear_cross_entropy_part.hpp"
#include "dflash/cpu/linear_frozen.hpp"
#include "dflash/cpu/rms_norm.hpp"
#include "dflash/cpu/rms_norm_rope.hpp"
#include "dflash/cpu/rope.hpp"
#include "dflash/cpu/rows.hpp"
#include "dflash/cpu/swiglu.hpp"

namespace dflash {
static_assert(Operations<CpuBackend<float>>);
static_assert(Operations<CpuBackend<double>>);
}  // namespace dflash
