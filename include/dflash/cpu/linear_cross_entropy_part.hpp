#pragma once

#include <cstdint>

#include "dflash/core/cross_entropy_part.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/linear_cross_entropy.hpp"

namespace dflash {

/// The part of each row's cross entropy that rows w of a head make, and the gradient that goes with
/// it, dx = sum over the logits of e^(logit - top) w (written). Labels count from the first row of
/// w; one that is none of them lies in another part. The bits of a row do not depend on the others.
///                                                 x, dx (R, H)  w (V, H)  label, part (R)
template <class T>
void linear_cross_entropy_part(CpuBackend<T>& backend, In<T, 2> x, InRows<T> w,
                               View<const std::int32_t, 1> label, View<CrossEntropyPart<T>, 1> part,
                               Out<T, 2> dx) {
  using namespace detail;
  const index_t rows = x.shape[0];
  expects(w.shape[1] == x.shape[1] && label.shape[0] == rows && part.shape[0] == rows &&
              dx.shape[0] == rows && dx.shape[1] == x.shape[1],
          "linear_cross_entropy_part: shapes differ");
  CrossEntropyRows<T> all(backend, label);
  const RunningCrossEntropy<T>& run = all.run;
  run_over_logits(backend, x, w, run, dx);
  for (index_t n = 0; n < rows; ++n)
    part(n) = {run.top[n], T(run.sum[n]), run.label_logit[n], run.best[n]};
}

/// dx(n) = scale(n) dx(n), less w(label(n)) where the label is a row of w: makes the gradients of
/// parts those of the whole cross entropy, to be summed.
///                                                 w (V, H)  label, scale (R)  dx (R, H)
template <class T>
void linear_cross_entropy_merge(CpuBackend<T>& backend, InRows<T> w,
                                View<const std::int32_t, 1> label, In<T, 1> scale, Out<T, 2> dx) {
  expects(
      label.shape[0] == dx.shape[0] && scale.shape[0] == dx.shape[0] && w.shape[1] == dx.shape[1],
      "linear_cross_entropy_merge: shapes differ");
  const index_t rows = dx.shape[0], dim = dx.shape[1];
  backend.parallel_for(rows, rows * dim, [&](index_t n, int) {
    T* const to = dx.data + n * dim;
    for (index_t d = 0; d < dim; ++d) to[d] *= scale(n);
    if (label(n) < 0 || label(n) >= w.shape[0]) return;
    w.visit([&](const auto& words) {
      const auto* const word = words.data + label(n) * dim;
      for (index_t d = 0; d < dim; ++d) to[d] -= T(word[d]);
    });
  });
}

}  // namespace dflash
