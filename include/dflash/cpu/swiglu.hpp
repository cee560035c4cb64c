#pragma once

#include <cmath>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// y = silu(gate) up (arXiv:2002.05202). y may be gate or up.              all (N, I)
template <class T>
void swiglu(CpuBackend<T>&, In<T, 2> gate, In<T, 2> up, Out<T, 2> y) {
  expects(gate.size() == y.size() && up.size() == y.size(), "swiglu: shapes differ");
  for (index_t i = 0; i < y.size(); ++i) {
    const T g = gate.data[i];
    y.data[i] = g / (1 + std::exp(-g)) * up.data[i];
  }
}

/// Adds to dgate and dup.                                                  all (N, I)
template <class T>
void swiglu_backward(CpuBackend<T>&, In<T, 2> gate, In<T, 2> up, In<T, 2> dy, Out<T, 2> dgate,
                     Out<T, 2> dup) {
  const index_t n = dy.size();
  expects(gate.size() == n && up.size() == n && dgate.size() == n && dup.size() == n,
          "swiglu_backward: shapes differ");
  for (index_t i = 0; i < n; ++i) {
    const T g = gate.data[i], s = 1 / (1 + std::exp(-g));
    dgate.data[i] += dy.data[i] * up.data[i] * s * (1 + g * (1 - s));
    dup.data[i] += dy.data[i] * g * s;
  }
}

}  // namespace dflash
