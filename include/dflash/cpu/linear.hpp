#pragma once

#include <algorithm>
#include <concepts>
#include <type_traits>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/operations.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/convert.hpp"
#include "dflash/cpu/gemm.hpp"

namespace dflash {

namespace detail {

/// f(the kernel of the backend's precision).
template <class T, class F>
auto with_kernel(CpuBackend<T>& backend, F f) {
  if constexpr (std::is_same_v<T, float>)
    if (backend.precision() != CpuPrecision::fp32)
      return f(bfloat16_kernel(backend.path(), backend.precision() == CpuPrecision::bf16x3));
  return f(backend.gemm_kernel());
}

template <class T, class FromA, class FromB>
void gemm(CpuBackend<T>& backend, Strided<FromA> a, Strided<FromB> b, index_t k, View<T, 2> c,
          bool add) {
  with_kernel(backend, [&](const auto& kernel) { gemm(backend, kernel, a, b, k, c, add); });
}

}  // namespace detail

/// y = x w^T.                                              x (N, I)  w (O, I)  y (N, O)
template <class T>
void linear(CpuBackend<T>& backend, InRows<T> x, In<T, 2> w, Out<T, 2> y) {
  expects(x.shape[1] == w.shape[1] && y.shape[0] == x.shape[0] && y.shape[1] == w.shape[0],
          "linear: shapes differ");
  const index_t k = x.shape[1];
  x.visit([&](const auto& rows) {
    detail::gemm(backend, detail::Strided{rows.data, k, 1}, detail::Strided{w.data, 1, k}, k, y,
                 false);
  });
}

/// dx += dy w, or = it.                                           dy (N, O)  w (O, I)  dx (N, I)
template <class T>
void linear_backward_input(CpuBackend<T>& backend, InRows<T> dy, In<T, 2> w, Out<T, 2> dx,
                           Result result = Result::added) {
  expects(dy.shape[1] == w.shape[0] && dx.shape[0] == dy.shape[0] && dx.shape[1] == w.shape[1],
          "linear_backward_input: shapes differ");
  const index_t k = dy.shape[1];
  dy.visit([&](const auto& rows) {
    detail::gemm(backend, detail::Strided{rows.data, k, 1}, detail::Strided{w.data, w.shape[1], 1},
                 k, dx, result == Result::added);
  });
}

/// dw += dy^T x, or = it.                                         dy (N, O)  x (N, I)  dw (O, I)
template <class T>
void linear_backward_weight(CpuBackend<T>& backend, InRows<T> dy, InRows<T> x, Out<T, 2> dw,
                            Result result = Result::added) {
  expects(dy.shape[0] == x.shape[0] && dw.shape[0] == dy.shape[1] && dw.shape[1] == x.shape[1],
          "linear_backward_weight: shapes differ");
  const index_t k = x.shape[0];
  dy.visit([&](const auto& a) {
    x.visit([&](const auto& b) {
      detail::gemm(backend, detail::Strided{a.data, 1, dy.shape[1]},
                   detail::Strided{b.data, x.shape[1], 1}, k, dw, result == Result::added);
    });
  });
}

namespace detail {

/// w as panels of a kernel; `row(n, to)` gives a pointer to row n, written to `to` if need be.
template <class T, class A, class B, class RowOf>
CpuBuffer<B> freeze_panels(CpuBackend<T>& backend, const GemmKernel<T, A, B>& kernel, index_t rows,
                           index_t k, RowOf rows_of) {
  const index_t panel = kernel.panel_columns(), depth = kernel.stored_depth(k);
  auto data = backend.template allocate<B>(kernel.padded(rows) * depth);
  auto scratch = backend.template allocate<T>(backend.threads() * panel * k);
  backend.parallel_for(kernel.panels(rows), rows * k, [&](index_t i, int thread) {
    const Range some{i * panel, std::min(rows, (i + 1) * panel)};
    const T* const from = rows_of(some, scratch.data() + thread * panel * k);
    pack_panels(kernel, Strided<T>{from, 1, k}, {0, k}, k, {0, some.size()},
                data.data() + some.begin * depth);
  });
  return data;
}

}  // namespace detail

/// w in the order in which products with it are fast, half as large if the backend's precision is
/// bf16. A copy: w may go.                                                         w (O, I)
template <class T>
typename CpuBackend<T>::FrozenMatrix freeze(CpuBackend<T>& backend, In<T, 2> w) {
  const index_t rows = w.shape[0], k = w.shape[1];
  typename CpuBackend<T>::FrozenMatrix frozen{{}, {}, rows, k, backend.path(), backend.precision()};
  detail::with_kernel(backend, [&](const auto& kernel) {
    auto panels = detail::freeze_panels<T>(backend, kernel, rows, k,
                                           [&](Range some, T*) { return w.data + some.begin * k; });
    if constexpr (std::is_same_v<decltype(panels), decltype(frozen.data)>)
      frozen.data = std::move(panels);
    else
      frozen.pairs = std::move(panels);
  });
  return frozen;
}

/// w, which stays bfloat16 in memory: products with it have the bits of products with its values in
/// float, at half the memory traffic.                                              w (O, I)
template <std::same_as<float> T>
typename CpuBackend<T>::FrozenMatrix freeze(CpuBackend<T>& backend, View<const bfloat16, 2> w) {
  const index_t rows = w.shape[0], k = w.shape[1];
  const auto widened = [&](Range some, T* to) {
    detail::convert_elements(w.data + some.begin * k, some.size() * k, to);
    return to;
  };
  using namespace detail;
  const bool wide = backend.precision() == CpuPrecision::fp32;
  const bool split = backend.precision() == CpuPrecision::bf16x3;
  auto widening = widening_kernel(backend.path());
  // Processors that round to bfloat16 themselves take the smallest numbers for zero.
  widening.path = std::min(widening.path, CpuPath::avx512);
  return {{},
          wide
              ? freeze_panels<T>(backend, widening, rows, k, widened)
              : freeze_panels<T>(backend, bfloat16_kernel(backend.path(), split), rows, k, widened),
          rows,
          k,
          backend.path(),
          backend.precision()};
}

}  // namespace dflash
