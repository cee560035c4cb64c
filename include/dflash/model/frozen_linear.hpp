#pragma once

#include <string>

#include "dflash/core/operations.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/model/load_frozen.hpp"
#include "dflash/model/weight_source.hpp"

namespace dflash {

/// w in the order in which products with it are fast.                                   w (O, I)
template <Backend B>
typename B::FrozenMatrix freeze(B& backend, const StoredRows<const typename B::value_type>& w,
                                WeightStorage storage) {
  if (storage == WeightStorage::int8) {
    if constexpr (requires { freeze_int8(backend, w); })
      return freeze_int8(backend, w);
    else
      throw Error("this backend has no products with weights in int8");
  }
  if constexpr (KeepsBfloat16Rows<B>)
    return w.visit([&](const auto& rows) { return freeze(backend, rows); });
  else
    return freeze(backend, w.wide());
}

/// A linear layer in a file: y = x w^T + bias.
struct LinearShape {
  index_t outputs, inputs;
  bool bias;
};

/// A part of a frozen linear layer: some rows of w and of the bias, and of these some columns.
template <Backend B>
struct FrozenLinear {
  using T = typename B::value_type;

  /// Reads that part alone. Error naming the tensor that is missing or of another shape.
  template <WeightSource W>
  static FrozenLinear load(B& backend, const W& weights, const std::string& name,
                           const LinearShape& shape, const TensorPart& part,
                           WeightStorage storage) {
    FrozenLinear linear;
    const StoredTensor<B> w = load_frozen(backend, weights, name + ".weight",
                                          {shape.outputs, shape.inputs}, part, storage);
    linear.weight = freeze(backend, w.rows(), storage);
    linear.outputs = part.rows.size();
    if (shape.bias)
      linear.bias = load_part(backend, weights, name + ".bias", {shape.outputs}, {part.rows});
    return linear;
  }

  typename B::FrozenMatrix weight;
  index_t outputs = 0;
  Tensor<B, T, 1> bias;  // empty: none
};

}  // namespace dflash
