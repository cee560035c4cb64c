#pragma once

#include <string>
#include <string_view>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/frozen_rows.hpp"
#include "dflash/core/tensor.hpp"
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

/// A part of a frozen matrix in memory: in bfloat16 where the source has that and the backend keeps
/// such rows, else in the backend's type.
template <Backend B>
class StoredMatrix {
 public:
  using T = typename B::value_type;

  StoredMatrix() = default;
  /// Reads that part alone. Error naming the tensor that is missing or of another shape.
  template <WeightSource W>
  StoredMatrix(B& backend, const W& weights, const std::string& name, const index_t (&shape)[2],
               const TensorPart& part, WeightStorage storage = WeightStorage::as_stored) {
    if constexpr (KeepsBfloat16Rows<B>)
      if (narrow_ = storage != WeightStorage::wide && is_bfloat16(weights, name); narrow_) {
        bfloat16s_ = load_part_as<bfloat16>(backend, weights, name, shape, part);
        return;
      }
    values_ = load_part(backend, weights, name, shape, part);
  }

  FrozenRows<T> rows() const {
    if constexpr (KeepsBfloat16Rows<B>)
      if (narrow_) return bfloat16s_.view();
    return values_.view();
  }

 private:
  Tensor<B, T, 2> values_;
  Tensor<B, bfloat16, 2> bfloat16s_;  // or these
  bool narrow_ = false;
};

}  // namespace dflash
