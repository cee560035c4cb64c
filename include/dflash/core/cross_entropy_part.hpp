#pragma once

#include <cstdint>

namespace dflash {

/// What some rows of a head say of one row's cross entropy. Parts from all rows of the head give
/// the whole: see linear_cross_entropy_part.
template <class A>
struct CrossEntropyPart {
  A top;              // largest logit; -infinity if there are none
  A sum;              // of e^(logit - top)
  A label_logit;      // meaningless if the label is not among these rows
  std::int32_t best;  // first row with the largest logit
};

}  // namespace dflash
