#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// Of each row nll = -log softmax(x w^T)[label], whether the label is the first largest logit, and
/// dx = d nll / dx (written). Logits never lie in memory whole.
///                                     x, dx (R, H)  w (V, H)  label, nll, correct (R)
template <class T>
void linear_cross_entropy(CpuBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                          View<const std::int32_t, 1> label, Out<T, 1> nll,
                          View<std::uint8_t, 1> correct, Out<T, 2> dx) {
  const index_t rows = x.shape[0], width = x.shape[1], vocabulary = w.shape[0];
  expects(w.shape[1] == width && label.shape[0] == rows && nll.shape[0] == rows &&
              correct.shape[0] == rows && dx.shape[0] == rows && dx.shape[1] == width,
          "linear_cross_entropy: shapes differ");
  auto buffer = backend.template allocate<T>(vocabulary);
  T* logit = buffer.data();
  for (index_t n = 0; n < rows; ++n) {
    expects(label(n) >= 0 && label(n) < vocabulary,
            "linear_cross_entropy: a label is not a row of w");
    for (index_t o = 0; o < vocabulary; ++o) {
      logit[o] = 0;
      for (index_t c = 0; c < width; ++c) logit[o] += x(n, c) * w(o, c);
    }
    const T* top = std::max_element(logit, logit + vocabulary);
    correct(n) = top - logit == label(n);
    double sum = 0;
    for (index_t o = 0; o < vocabulary; ++o) sum += std::exp(double(logit[o] - *top));
    nll(n) = T(std::log(sum) + double(*top) - double(logit[label(n)]));
    const double lse = double(*top) + std::log(sum);
    for (index_t c = 0; c < width; ++c) dx(n, c) = -w(label(n), c);
    for (index_t o = 0; o < vocabulary; ++o) {
      const T p = T(std::exp(double(logit[o]) - lse));
      for (index_t c = 0; c < width; ++c) dx(n, c) += p * w(o, c);
    }
  }
}

}  // namespace dflash
