#pragma once

#include <cstdint>

#include "dflash/core/error.hpp"
#include "dflash/core/tensor.hpp"

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

namespace detail {

/// Error unless linear_cross_entropy_part can take these.        W: rows of a head in any storage
template <class T, class W, class A>
void check_part(View<const T, 2> x, const W& w, View<const std::int32_t, 1> label,
                View<CrossEntropyPart<A>, 1> part, View<T, 2> dx) {
  const index_t rows = x.shape[0], dim = x.shape[1];
  expects(w.shape[1] == dim && label.shape[0] == rows && part.shape[0] == rows &&
              dx.shape[0] == rows && dx.shape[1] == dim,
          "linear_cross_entropy_part: shapes differ");
}

/// The same of linear_cross_entropy_merge.
template <class T, class W, class A>
void check_merge(const W& w, View<const std::int32_t, 1> label, View<const A, 1> scale,
                 View<const A, 1> label_share, View<T, 2> dx) {
  const index_t rows = dx.shape[0];
  expects(label.shape[0] == rows && scale.shape[0] == rows && label_share.shape[0] == rows &&
              w.shape[1] == dx.shape[1],
          "linear_cross_entropy_merge: shapes differ");
}

}  // namespace detail

}  // namespace dflash
