#pragma once

#include <algorithm>
#include <cmath>

#include "dflash/core/operations.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

/// One AdamW step in one pass over memory.                 gradient, weight, m, v (n)
template <class T>
void adamw(CpuBackend<T>& backend, In<T, 1> gradient, AdamWStep step, Out<T, 1> weight, Out<T, 1> m,
           Out<T, 1> v) {
  const index_t size = gradient.shape[0];
  expects(weight.shape[0] == size && m.shape[0] == size && v.shape[0] == size,
          "adamw: shapes differ");
  const T keep = T(1 - step.rate * step.decay), beta1 = T(step.beta1), beta2 = T(step.beta2),
          rest1 = T(1 - step.beta1), rest2 = T(1 - step.beta2),
          rate = T(step.rate / step.correction1), shrink = T(1 / std::sqrt(step.correction2)),
          eps = T(step.eps), scale = T(step.gradient_scale);
  backend.for_parts(size, 8, [&](Range part) {
    constexpr index_t few = 512;
    T root_of_v[few];
    for (index_t begin = part.begin; begin < part.end; begin += few) {
      const index_t count = std::min(few, part.end - begin);
      const T* __restrict from = gradient.data + begin;
      T* __restrict w = weight.data + begin;
      T* __restrict first = m.data + begin;
      T* __restrict second = v.data + begin;
      T* __restrict roots = root_of_v;
      detail::on_path(
          backend.path(), [=]() __attribute__((always_inline)) {
            for (index_t i = 0; i < count; ++i) {
              const T g = from[i] * scale;
              first[i] = beta1 * first[i] + rest1 * g;
              roots[i] = second[i] = beta2 * second[i] + rest2 * (g * g);
            }
          });
      detail::square_roots(backend.path(), root_of_v, count);
      detail::on_path(
          backend.path(), [=]() __attribute__((always_inline)) {
            for (index_t i = 0; i < count; ++i)
              w[i] = w[i] * keep - rate * first[i] / (roots[i] * shrink + eps);
          });
    }
  });
}

/// Sum of squares, in double, in parts that do not depend on the threads.
template <class T>
double sum_of_squares(CpuBackend<T>& backend, In<T, 1> x) {
  const index_t part = 1 << 16, parts = (x.shape[0] + part - 1) / part;
  auto sums = backend.template allocate<double>(parts);
  backend.parallel_for(parts, x.shape[0], [&](index_t i, int) {
    const T* const from = x.data + i * part;
    const index_t size = std::min(part, x.shape[0] - i * part);
    double* const to = sums.data() + i;
    detail::on_path(
        backend.path(), [=]() __attribute__((always_inline)) {
          *to = detail::sum_of_products(size, from, from);
        });
  });
  double sum = 0;
  for (index_t i = 0; i < parts; ++i) sum += sums.data()[i];
  return sum;
}

}  // namespace dflash
