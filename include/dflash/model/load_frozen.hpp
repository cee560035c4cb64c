#pragma once

#include <string>
#include <string_view>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/choices.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/model/weight_source.hpp"

namespace dflash {

/// How frozen matrices lie in memory: decoding is as fast as they can be read.
enum class WeightStorage {
  as_stored,  // in bfloat16 where the file has bfloat16: the same results
  wide,       // in the type or the precision of the backend
  int8        // in whole numbers up to 127, and a scale for each output: rounded
};

inline constexpr auto weight_storages =
    choices<WeightStorage>("storage of weights", {{"as-stored", WeightStorage::as_stored},
                                                  {"wide", WeightStorage::wide},
                                                  {"int8", WeightStorage::int8}});

/// Whether a source holds a tensor in bfloat16.
template <WeightSource W>
bool is_bfloat16(const W& weights, std::string_view name) {
  if constexpr (requires { weights.at(name).dtype == DType::bf16; })
    return weights.at(name).dtype == DType::bf16;
  return false;
}

/// A part of a frozen matrix, which alone is read: in bfloat16 where the source has that and the
/// backend keeps such rows, else in the backend's type. Error naming the tensor that is missing or
/// of another shape.
template <Backend B, WeightSource W>
StoredTensor<B> load_frozen(B& backend, const W& weights, const std::string& name,
                            const index_t (&shape)[2], const TensorPart& part,
                            WeightStorage storage = WeightStorage::as_stored) {
  if constexpr (KeepsBfloat16Rows<B>)
    if (storage != WeightStorage::wide && is_bfloat16(weights, name))
      return load_part_as<bfloat16>(backend, weights, name, shape, part);
  return load_part(backend, weights, name, shape, part);
}

}  // namespace dflash
