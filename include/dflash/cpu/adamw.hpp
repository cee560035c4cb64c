#pragma once

#include <cmath>

#include "dflash/core/operations.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// One AdamW step in one pass over memory.                 gradient, weight, m, v (n)
template <class T>
void adamw(CpuBackend<T>&, In<T, 1> gradient, AdamWStep step, Out<T, 1> weight, Out<T, 1> m,
           Out<T, 1> v) {
  const index_t n = gradient.shape[0];
  expects(weight.shape[0] == n && m.shape[0] == n && v.shape[0] == n, "adamw: shapes differ");
  const T keep = T(1 - step.rate * step.decay), beta1 = T(step.beta1), beta2 = T(step.beta2),
          rate = T(step.rate / step.correction1), root = T(std::sqrt(step.correction2)),
          eps = T(step.eps), scale = T(step.gradient_scale);
  for (index_t i = 0; i < n; ++i) {
    const T g = gradient(i) * scale;
    m(i) = beta1 * m(i) + T(1 - step.beta1) * g;
    v(i) = beta2 * v(i) + T(1 - step.beta2) * g * g;
    weight(i) = weight(i) * keep - rate * m(i) / (std::sqrt(v(i)) / root + eps);
  }
}

/// Sum of squares, in double.
template <class T>
double sum_of_squares(CpuBackend<T>&, In<T, 1> x) {
  double sum = 0;
  for (index_t i = 0; i < x.shape[0]; ++i) sum += double(x(i)) * double(x(i));
  return sum;
}

}  // namespace dflash
