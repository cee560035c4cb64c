#pragma once

#include <algorithm>
#include <span>
#include <type_traits>
#include <vector>

#include "dflash/core/operations.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/frozen_int8.hpp"
#include "dflash/cpu/gemm.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

namespace detail {

template <class T>
using CpuProduct = FrozenProduct<typename CpuBackend<T>::FrozenMatrix, T>;

/// What is left to do with finished columns of a product: w's scales, if it has any, and the bias.
template <class T>
void finish_columns(CpuPath path, const CpuProduct<T>& product, Range rows, Range columns) {
  const float* const scales = product.w->scales.size() > 0 ? product.w->scales.data() : nullptr;
  const T* const bias = product.bias.size() > 0 ? product.bias.data : nullptr;
  if (scales == nullptr && bias == nullptr) return;
  const View<T, 2> all = product.y;
  on_path(
      path, [=]() __attribute__((always_inline)) {
        for (index_t n = rows.begin; n < rows.end; ++n) {
          T* const y = all.data + n * all.shape[1];
          // One after the other: a product and a sum at once would round once.
          for (index_t c = columns.begin; scales != nullptr && c < columns.end; ++c)
            y[c] *= T(scales[c]);
          for (index_t c = columns.begin; bias != nullptr && c < columns.end; ++c) y[c] += bias[c];
        }
      });
}

/// The products in one loop, cut into pieces as if the matrices lay side by side: what threads wait
/// for each other, and what it takes to copy rows of x, falls due once.
template <class T, class A, class B, class From, class PanelsOf>
void multiply_frozen(CpuBackend<T>& backend, const GemmKernel<T, A, B>& kernel,
                     View<const From, 2> x, std::span<const CpuProduct<T>> products,
                     PanelsOf panels_of) {
  const index_t rows = x.shape[0], k = x.shape[1], panel = kernel.panel_columns();
  index_t columns = 0;
  for (const auto& product : products) columns += kernel.panels(product.w->rows) * panel;
  if (rows == 0 || columns == 0) return;
  for_slices(k, gemm_slice, [&](Range ks) {
    const index_t depth = kernel.depth(ks.size()), first = ks.begin / k_per_element<B>;
    const Strided<From> a{x.data + ks.begin, k, 1};
    const RowCopies<T, A, B, From> copies(kernel, a, rows, ks.size());
    const GemmPieces pieces(kernel, rows, columns, ks.size(), backend.threads(), copies.needed(),
                            false);
    const index_t copy = copies.size(row_block(kernel, pieces.height(), depth));
    auto memory = backend.template allocate<A>(backend.threads() * copy);
    // Of few rows the work is in reading the matrices.
    const index_t work = std::max<index_t>(rows, 8) * columns * ks.size();
    backend.parallel_for(pieces.size(), work, [&](index_t i, int thread) {
      const Range piece = pieces.columns_of(i), part = pieces.rows_of(i);
      A* const room = memory.data() + thread * copy;
      const Strided<From> some_rows{a.at(part.begin, 0), k, 1};
      each_row_block(
          kernel, copies, depth, some_rows, part.size(), room, [&](RowBlock<A> from, Range few) {
            const Range block{part.begin + few.begin, part.begin + few.end};
            index_t start = 0;
            for (const auto& product : products) {
              const index_t width = product.w->rows;
              const Range some{std::max<index_t>(piece.begin - start, 0),
                               std::min(piece.end - start, width)};
              start += kernel.panels(width) * panel;
              if (some.begin >= some.end) continue;
              const Panels<B> panels{panels_of(*product.w), kernel.stored_depth(k), width, 0, true};
              multiply(kernel, from, block.size(), panels.part(some.begin, some.size()),
                       Range{first, first + depth},
                       product.y.data + block.begin * width + some.begin, width, ks.begin > 0);
              if (ks.end == k) finish_columns(kernel.path, product, block, some);
            }
          });
    });
  });
}

/// Whether products with both matrices are made of the same tiles.
template <class Matrix>
bool same_storage(const Matrix& a, const Matrix& b) {
  return (a.quads.size() > 0) == (b.quads.size() > 0) &&
         (a.pairs.size() > 0) == (b.pairs.size() > 0);
}

template <class T>
void multiply_frozen(CpuBackend<T>& backend, InRows<T> x, std::span<const CpuProduct<T>> products) {
  const auto& w = *products.front().w;
  const auto with = [&](const auto& kernel, const auto& panels_of) {
    x.visit([&](const auto& rows) { multiply_frozen(backend, kernel, rows, products, panels_of); });
  };
  if constexpr (std::is_same_v<T, float>) {
    const auto pairs_of = [](const auto& m) { return m.pairs.data(); };
    if (w.quads.size() != 0)
      return with(int8_kernel(w.path), [](const auto& m) { return m.quads.data(); });
    if (w.precision != CpuPrecision::fp32)
      return with(bfloat16_kernel(w.path, w.precision == CpuPrecision::bf16x3), pairs_of);
    if (w.pairs.size() != 0) return with(widening_kernel(w.path), pairs_of);
  }
  with(backend.gemm_kernel(), [](const auto& m) { return m.data.data(); });
}

}  // namespace detail

/// y = x w^T + bias for several frozen matrices: the bits that each alone would give.
///                                                                 x (N, I)  w (O, I)  y (N, O)
template <class T>
void linear_each(CpuBackend<T>& backend, InRows<T> x,
                 std::span<const std::type_identity_t<detail::CpuProduct<T>>> products) {
  for (const auto& [w, bias, y] : products) {
    expects(x.shape[1] == w->columns && y.shape[0] == x.shape[0] && y.shape[1] == w->rows &&
                (bias.size() == 0 || bias.size() == w->rows),
            "linear: shapes differ");
    expects(
        w->path == backend.path() && (w->quads.size() != 0 || w->precision == backend.precision()),
        "linear: w was frozen for another path or precision");
  }
  while (!products.empty()) {
    std::size_t alike = 1;
    while (alike < products.size() && detail::same_storage(*products.front().w, *products[alike].w))
      ++alike;
    detail::multiply_frozen<T>(backend, x, products.first(alike));
    products = products.subspan(alike);
  }
}

/// y = x w^T with a frozen w: the same bits as with w itself, unless w was rounded.
template <class T>
void linear(CpuBackend<T>& backend, InRows<T> x, const typename CpuBackend<T>::FrozenMatrix& w,
            Out<T, 2> y) {
  const detail::CpuProduct<T> product{&w, {}, y};
  linear_each(backend, x, {&product, 1});
}

}  // namespace dflash
