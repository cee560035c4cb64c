#pragma once

#include "dflash/cpu.hpp"

namespace dflash_test {

/// Leaves all rows in float, also where products round them.
struct WideBackend : dflash::CpuBackend<float> {
  using CpuBackend<float>::CpuBackend;
  static constexpr bool keeps_bfloat16_rows = false;
};
static_assert(!dflash::KeepsBfloat16Rows<WideBackend>);

}  // namespace dflash_test
