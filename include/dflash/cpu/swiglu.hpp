#pragma once

#include <algorithm>

#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/rounding.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

/// y = silu(gate) up (arXiv:2002.05202), rounded if y lies in bfloat16, else y may be gate or up.
///                                                                         all (N, I)
template <class T>
void swiglu(CpuBackend<T>& backend, In<T, 2> gate, In<T, 2> up, OutRows<T> y) {
  expects(gate.size() == y.size() && up.size() == y.size(), "swiglu: shapes differ");
  y.visit([&](const auto& to) {
    backend.for_parts(y.size(), 8, [&](Range part) {
      detail::on_path(
          backend.path(), [ =, path = backend.path() ]() __attribute__((always_inline)) {
            const T* const g = gate.data + part.begin;
            const T* const u = up.data + part.begin;
            detail::store_each<T>(
                path, part.size(),
                to.data + part.begin, [=](index_t i) __attribute__((always_inline)) {
                  return g[i] / (1 + detail::exponential(-g[i])) * u[i];
                });
          });
    });
  });
}

/// Writes dgate and dup. Either may lie in bfloat16, rounded; in T, dup may be dy.
///                                                                         all (N, I)
template <class T>
void swiglu_backward(CpuBackend<T>& backend, In<T, 2> gate, In<T, 2> up, In<T, 2> dy,
                     OutRows<T> dgate, OutRows<T> dup) {
  const index_t size = dy.size();
  expects(gate.size() == size && up.size() == size && dgate.size() == size && dup.size() == size,
          "swiglu_backward: shapes differ");
  // Both go through arrays of their own, as dup may be dy.
  const auto write = [&](const auto& to_gate, const auto& to_up) {
    backend.for_parts(size, 16, [&](Range part) {
      detail::on_path(
          backend.path(), [ =, path = backend.path() ]() __attribute__((always_inline)) {
            constexpr index_t few = 128;
            alignas(64) T some_gate[few], some_up[few];
            for (index_t begin = part.begin; begin < part.end; begin += few) {
              const index_t count = std::min(few, part.end - begin);
              const T* const g = gate.data + begin;
              const T* const u = up.data + begin;
              const T* const d = dy.data + begin;
              for (index_t i = 0; i < count; ++i) {
                const T s = 1 / (1 + detail::exponential(-g[i]));
                some_gate[i] = d[i] * u[i] * s * (1 + g[i] * (1 - s));
                some_up[i] = d[i] * g[i] * s;
              }
              detail::store_values(path, some_gate, count, to_gate.data + begin);
              detail::store_values(path, some_up, count, to_up.data + begin);
            }
          });
    });
  };
  dgate.visit([&](const auto& gates) { dup.visit([&](const auto& ups) { write(gates, ups); }); });
}

}  // namespace dflash
