#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "dflash/core/cross_entropy_part.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/linear.hpp"

namespace dflash {

/// The part of each row's cross entropy that rows w of a head make, and the gradient that goes with
/// it, dx = sum over the logits of e^(logit - top) w (written). Labels count from the first row of
/// w; one that is none of them lies in another part. The bits of a row do not depend on the others.
///                                                 x, dx (R, H)  w (V, H)  label, part (R)
template <class T>
void linear_cross_entropy_part(CpuBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                               View<const std::int32_t, 1> label, View<CrossEntropyPart<T>, 1> part,
                               Out<T, 2> dx) {
  const index_t rows = x.shape[0], words = w.shape[0];
  expects(w.shape[1] == x.shape[1] && label.shape[0] == rows && part.shape[0] == rows &&
              dx.shape[0] == rows && dx.shape[1] == x.shape[1],
          "linear_cross_entropy_part: shapes differ");
  std::fill_n(dx.data, dx.size(), T(0));
  const T nan = std::numeric_limits<T>::quiet_NaN();
  std::fill_n(part.data, rows,
              CrossEntropyPart<T>{-std::numeric_limits<T>::infinity(), 0, nan, -1});
  constexpr index_t step = 1024;
  auto logits = backend.template allocate<T>(rows * std::min(step, words));
  for (index_t first = 0; first < words; first += step) {
    const Range some{first, std::min(words, first + step)};
    const View<T, 2> logit{logits.data(), {rows, some.size()}};
    linear(backend, x, w.rows(some), logit);
    for (index_t n = 0; n < rows; ++n) {
      CrossEntropyPart<T>& here = part(n);
      T* const row = logit.data + n * some.size();
      if (label(n) >= some.begin && label(n) < some.end) here.label_logit = row[label(n) - first];
      const T* const top = std::max_element(row, row + some.size());
      if (*top > here.top) {
        const T shrink = std::exp(here.top - *top);
        here.sum *= shrink;
        for (index_t c = 0; c < dx.shape[1]; ++c) dx(n, c) *= shrink;
        here.top = *top;
        here.best = std::int32_t(first + (top - row));
      }
      double sum = double(here.sum);
      for (index_t j = 0; j < some.size(); ++j) {
        row[j] = std::exp(row[j] - here.top);
        sum += double(row[j]);
      }
      here.sum = T(sum);
    }
    linear_backward_input(backend, logit, w.rows(some), dx);
  }
}

/// dx(n) = scale(n) dx(n), less w(label(n)) where the label is a row of w: makes the gradients of
/// parts those of the whole cross entropy, to be summed.
///                                                 w (V, H)  label, scale (R)  dx (R, H)
template <class T>
void linear_cross_entropy_merge(CpuBackend<T>&, In<T, 2> w, View<const std::int32_t, 1> label,
                                In<T, 1> scale, Out<T, 2> dx) {
  expects(
      label.shape[0] == dx.shape[0] && scale.shape[0] == dx.shape[0] && w.shape[1] == dx.shape[1],
      "linear_cross_entropy_merge: shapes differ");
  for (index_t n = 0; n < dx.shape[0]; ++n) {
    const bool here = label(n) >= 0 && label(n) < w.shape[0];
    for (index_t c = 0; c < dx.shape[1]; ++c)
      dx(n, c) = dx(n, c) * scale(n) - (here ? w(label(n), c) : T(0));
  }
}

}  // namespace dflash
