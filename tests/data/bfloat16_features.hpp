#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "dflash/core/bfloat16.hpp"
#include "dflash/data/memory_sample.hpp"

namespace dflash_test {

/// The sample with its features rounded, as stores have them.
inline dflash::MemorySample with_bfloat16_features(dflash::MemorySample sample) {
  const dflash::index_t rows = sample.features->rows(), width = sample.features->width();
  std::vector<dflash::bfloat16> values(std::size_t(rows * width));
  sample.features->read_rounded({0, rows}, values.data());
  sample.features = std::make_shared<dflash::MemoryFeatures>(std::move(values), width);
  return sample;
}

}  // namespace dflash_test
