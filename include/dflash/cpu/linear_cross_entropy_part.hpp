#pragma once

#include <cmath>
#include <cstdint>

#include "dflash/core/cross_entropy_part.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/linear_cross_entropy.hpp"

namespace dflash {

namespace detail {

/// to += share w(word), if that is a row of w.                          w (V, H)  to (1, H)
template <class T>
void add_word(InRows<T> w, std::int32_t word, T share, Out<T, 2> to) {
  if (word < 0 || word >= w.shape[0]) return;
  w.visit([&](const auto& words) {
    const auto* const of_word = words.data + word * to.size();
    for (index_t d = 0; d < to.size(); ++d) to.data[d] += share * T(of_word[d]);
  });
}

}  // namespace detail

/// The part of each row's cross entropy that rows w of a head make, and the gradient that goes with
/// it, dx = sum over the logits but the label's of e^(logit - top) w (written): with the label's
/// share a row that is predicted well would lose the rest. Labels count from the first row of w;
/// one that is none of them lies in another part. The bits of a row do not depend on the others.
///                                                 x, dx (R, H)  w (V, H)  label, part (R)
template <class T>
void linear_cross_entropy_part(CpuBackend<T>& backend, In<T, 2> x, InRows<T> w,
                               View<const std::int32_t, 1> label, View<CrossEntropyPart<T>, 1> part,
                               Out<T, 2> dx) {
  using namespace detail;
  check_part(x, w, label, part, dx);
  CrossEntropyRows<T> all(backend, label);
  const RunningCrossEntropy<T>& run = all.run;
  run_over_logits(backend, x, w, run, dx);
  backend.parallel_for(x.shape[0], dx.size(), [&](index_t n, int) {
    part(n) = {run.top[n], T(run.sum[n]), run.label_logit[n], run.best[n]};
    add_word(w, label(n), -std::exp(part(n).label_logit - part(n).top), dx.rows({n, n + 1}));
  });
}

/// dx(n) = scale(n) dx(n), and label_share(n) w(label(n)) more where the label is a row of w: makes
/// the gradients of parts those of the whole cross entropy, to be summed. A label's share is its
/// probability less 1.
///                                    w (V, H)  label, scale, label_share (R)  dx (R, H)
template <class T>
void linear_cross_entropy_merge(CpuBackend<T>& backend, InRows<T> w,
                                View<const std::int32_t, 1> label, In<T, 1> scale,
                                In<T, 1> label_share, Out<T, 2> dx) {
  detail::check_merge(w, label, scale, label_share, dx);
  backend.parallel_for(dx.shape[0], dx.size(), [&](index_t n, int) {
    const Out<T, 2> row = dx.rows({n, n + 1});
    for (index_t d = 0; d < row.size(); ++d) row.data[d] *= scale(n);
    detail::add_word(w, label(n), label_share(n), row);
  });
}

}  // namespace dflash
