#pragma once

#include <cstdint>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/random.hpp"

namespace dflash_test {

/// Sizes of a head and of the rows that it scores.
struct HeadShape {
  dflash::index_t rows, width, words;

  /// A word for each row.
  std::vector<std::int32_t> labels() const {
    std::vector<std::int32_t> all;
    for (dflash::index_t n = 0; n < rows; ++n)
      all.push_back(
          std::int32_t(dflash::Random(3).integer(std::uint64_t(n)) % std::uint64_t(words)));
    return all;
  }
};

}  // namespace dflash_test
