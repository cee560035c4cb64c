#pragma once

#include <span>

#include "dflash/comm/group_operations.hpp"
#include "dflash/core/operations.hpp"

namespace dflash {

/// A linear layer y = x w^T + bias whose output features are split: a rank holds some rows of w and
/// of the bias, and computes those columns of y from the whole x. Weights may be views, or frozen.
template <Backend B, Communicator C = SingleProcess>
class ColumnParallelLinear {
 public:
  using T = typename B::value_type;
  using Sum = typename B::accumulator_type;

  ColumnParallelLinear(B& backend, TensorParallelGroup<C>& group)
      : backend_(&backend), group_(&group) {}

  /// Communicates nothing. An empty bias is none.
  ///                              x (N, I)  w (own outputs, I)  bias (own outputs)  y (N, own
  ///                              outputs)
  template <class Weight>
  void forward(InRows<T> x, const Weight& w, In<T, 1> bias, Out<T, 2> y) const {
    linear(*backend_, x, w, y);
    if (bias.size() > 0) add_rows(*backend_, bias, y);
  }

  /// The same for several frozen layers that read the same x, on backends that can at once.
  template <class Matrix>
  void forward(InRows<T> x, std::span<const FrozenProduct<Matrix, T>> products) const {
    if constexpr (requires { linear_each(*backend_, x, products); })
      linear_each(*backend_, x, products);
    else
      for (const auto& [w, bias, y] : products) forward(x, *w, bias, y);
  }

  /// Adds to dx, dw and dbias (empty: none). dx gets the sum over the ranks, on each.
  void backward(In<T, 2> x, In<T, 2> w, In<T, 2> dy, Out<T, 2> dx, Out<Sum, 2> dw,
                Out<Sum, 1> dbias) const {
    linear_backward_weight(*backend_, dy, x, dw);
    if (dbias.size() > 0) sum_rows(*backend_, dy, dbias);
    Tensor<B, T, 2> part(*backend_, {dx.shape[0], dx.shape[1]});
    fill(*backend_, part.view(), T(0));
    linear_backward_input(*backend_, dy, w, part.view());
    sum_over_ranks(*backend_, *group_, part.view());
    add(*backend_, part.view(), dx);
  }

 private:
  B* backend_;
  TensorParallelGroup<C>* group_;
};

/// A linear layer y = x w^T + bias whose input features are split: a rank holds some columns of w,
/// and those of x; the ranks' products are summed, then the bias, which each holds whole, is added
/// once. Weights may be views, or frozen.
template <Backend B, Communicator C = SingleProcess>
class RowParallelLinear {
 public:
  using T = typename B::value_type;
  using Sum = typename B::accumulator_type;

  RowParallelLinear(B& backend, TensorParallelGroup<C>& group)
      : backend_(&backend), group_(&group) {}

  /// y is the same on every rank. An empty bias is none.
  ///                                      x (N, own inputs)  w (O, own inputs)  bias (O)  y (N, O)
  template <class Weight>
  void forward(InRows<T> x, const Weight& w, In<T, 1> bias, Out<T, 2> y) const {
    linear(*backend_, x, w, y);
    sum_over_ranks(*backend_, *group_, y);
    if (bias.size() > 0) add_rows(*backend_, bias, y);
  }

  /// Adds to dx, dw and dbias (empty: none), which is the same on every rank. Communicates nothing.
  void backward(In<T, 2> x, In<T, 2> w, In<T, 2> dy, Out<T, 2> dx, Out<Sum, 2> dw,
                Out<Sum, 1> dbias) const {
    linear_backward_weight(*backend_, dy, x, dw);
    if (dbias.size() > 0) sum_rows(*backend_, dy, dbias);
    linear_backward_input(*backend_, dy, w, dx);
  }

 private:
  B* backend_;
  TensorParallelGroup<C>* group_;
};

}  // namespace dflash
