#pragma once

#include "dflash/comm/sequence_layout.hpp"

namespace dflash {

/// One of `ranks` nearly equal, contiguous parts of whatever is split.
struct Share {
  index_t ranks = 1, rank = 0;

  Range of(index_t total) const { return even_cut(total, ranks, rank); }
};

}  // namespace dflash
