#pragma once

#include <algorithm>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

/// y = silu(gate) up (arXiv:2002.05202). y may be gate or up.              all (N, I)
template <class T>
void swiglu(CpuBackend<T>& backend, In<T, 2> gate, In<T, 2> up, Out<T, 2> y) {
  expects(gate.size() == y.size() && up.size() == y.size(), "swiglu: shapes differ");
  backend.for_parts(y.size(), 8, [&](Range part) {
    detail::on_path(
        backend.path(), [=]() __attribute__((always_inline)) {
          for (index_t i = part.begin; i < part.end; ++i) {
            const T g = gate.data[i];
            y.data[i] = g / (1 + detail::exponential(-g)) * up.data[i];
          }
        });
  });
}

/// Writes dgate and dup, which may be dy.                                  all (N, I)
template <class T>
void swiglu_backward(CpuBackend<T>& backend, In<T, 2> gate, In<T, 2> up, In<T, 2> dy,
                     Out<T, 2> dgate, Out<T, 2> dup) {
  const index_t size = dy.size();
  expects(gate.size() == size && up.size() == size && dgate.size() == size && dup.size() == size,
          "swiglu_backward: shapes differ");
  backend.for_parts(size, 16, [&](Range part) {
    detail::on_path(
        backend.path(), [=]() __attribute__((always_inline)) {
          constexpr index_t few = 128;
          T to_gate[few], to_up[few];
          for (index_t begin = part.begin; begin < part.end; begin += few) {
            const index_t count = std::min(few, part.end - begin);
            const T* const g = gate.data + begin;
            const T* const u = up.data + begin;
            const T* const d = dy.data + begin;
            for (index_t i = 0; i < count; ++i) {
              const T s = 1 / (1 + detail::exponential(-g[i]));
              to_gate[i] = d[i] * u[i] * s * (1 + g[i] * (1 - s));
              to_up[i] = d[i] * g[i] * s;
            }
            std::copy_n(to_gate, count, dgate.data + begin);
            std::copy_n(to_up, count, dup.data + begin);
          }
        });
  });
}

}  // namespace dflash
