#pragma once

#include <algorithm>
#include <concepts>
#include <string>
#include <string_view>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/operations.hpp"
#include "dflash/model/weight_source.hpp"

namespace dflash {

/// How frozen matrices lie in memory: decoding is as fast as they can be read.
enum class WeightStorage {
  as_stored,  // in bfloat16 where the file has bfloat16: the same results
  wide,       // in the type or the precision of the backend
  int8        // in whole numbers up to 127, and a scale for each output: rounded
};

/// The storage of that name: as-stored, wide or int8.
inline WeightStorage weight_storage_named(std::string_view name) {
  if (name == "as-stored") return WeightStorage::as_stored;
  if (name == "wide") return WeightStorage::wide;
  if (name == "int8") return WeightStorage::int8;
  throw Error("there is no storage of weights '" + std::string(name) +
              "'; known are as-stored, wide and int8");
}

/// Whether a source holds a tensor in bfloat16.
template <WeightSource W>
bool is_bfloat16(const W& weights, std::string_view name) {
  if constexpr (requires { weights.at(name).dtype == DType::bf16; })
    return weights.at(name).dtype == DType::bf16;
  return false;
}

/// w in the order in which products with it are fast. `bfloat16_values`: w has no others.
///                                                                                      w (O, I)
template <Backend B>
typename B::FrozenMatrix freeze(B& backend, View<const typename B::value_type, 2> w,
                                WeightStorage storage, bool bfloat16_values) {
  if (storage == WeightStorage::int8) {
    if constexpr (requires { freeze_int8(backend, w); })
      return freeze_int8(backend, w);
    else
      throw Error("this backend has no products with weights in int8");
  }
  if constexpr (requires(View<const bfloat16, 2> narrow) { freeze(backend, narrow); } &&
                std::same_as<typename B::value_type, float>) {
    if (storage == WeightStorage::as_stored && bfloat16_values) {
      Tensor<B, bfloat16, 2> narrow(backend, {w.shape[0], w.shape[1]});
      std::transform(w.data, w.data + w.size(), narrow.view().data,
                     [](float x) { return bfloat16(x); });
      return freeze(backend, View<const bfloat16, 2>(narrow.view()));
    }
  }
  return freeze(backend, w);
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
    const auto w =
        load_part(backend, weights, name + ".weight", {shape.outputs, shape.inputs}, part);
    linear.weight = freeze(backend, w.view(), storage, is_bfloat16(weights, name + ".weight"));
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
