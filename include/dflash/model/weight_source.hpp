#pragma once

#include <concepts>
#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "dflash/core/tensor.hpp"
#include "dflash/io/tensor_entry.hpp"

namespace dflash {

/// Named tensors of a model, wherever they lie: a Hugging Face folder, or what can stand for one.
/// `read` throws Error unless the tensor is there and has the given shape.
template <class W>
concept WeightSource = requires(const W& weights, std::string_view name,
                                const std::vector<index_t>& shape, float* out) {
  { weights.contains(name) } -> std::same_as<bool>;
  { weights.at(name).shape } -> std::convertible_to<const std::vector<index_t>&>;
  { weights.at(name).size() } -> std::convertible_to<index_t>;
  weights.template read<float>(name, shape, out);
};

/// A tensor of the given shape, from a source into the backend's memory, in T.
template <class T, Backend B, WeightSource W, int Rank>
Tensor<B, T, Rank> load_tensor_as(B& backend, const W& weights, std::string_view name,
                                  const index_t (&shape)[Rank]) {
  // As large as the tensor in the source: a config that lies cannot ask for more.
  const index_t size = weights.at(name).size();
  const std::vector<index_t> whole(shape, shape + Rank);
  if constexpr (HostBackend<B>) {
    if (weights.at(name).shape == whole) {
      Tensor<B, T, Rank> tensor(backend, shape);
      weights.template read<T>(name, whole, tensor.view().data);
      return tensor;
    }
  }
  const auto host = std::make_unique_for_overwrite<T[]>(std::size_t(size));
  weights.template read<T>(name, whole, host.get());
  Tensor<B, T, Rank> tensor(backend, shape);
  backend.upload(host.get(), tensor.view().data, size);
  backend.synchronize();  // the host copy goes
  return tensor;
}

/// The same in the backend's own type.
template <Backend B, WeightSource W, int Rank>
auto load_tensor(B& backend, const W& weights, std::string_view name,
                 const index_t (&shape)[Rank]) {
  return load_tensor_as<typename B::value_type>(backend, weights, name, shape);
}

/// A source that reads parts of tensors; of any other, tensors are read whole and cut.
template <class W>
concept PartialWeightSource = WeightSource<W> &&
    requires(const W& weights, std::string_view name, const std::vector<index_t>& shape,
             const TensorPart& part, float* out) {
  weights.template read<float>(name, shape, part, out);
};

/// A part of a tensor of the given shape, from a source into the backend's memory, in T.
template <class T, Backend B, WeightSource W, int Rank>
requires(Rank <=
         2) Tensor<B, T, Rank> load_part_as(B& backend, const W& weights, std::string_view name,
                                            const index_t (&shape)[Rank], const TensorPart& part) {
  const std::vector<index_t> whole(shape, shape + Rank);
  // The error about another shape comes from there, before memory is asked for.
  if (part.size() == weights.at(name).size() || weights.at(name).shape != whole)
    return load_tensor_as<T>(backend, weights, name, shape);
  const auto host = std::make_unique_for_overwrite<T[]>(std::size_t(part.size()));
  if constexpr (PartialWeightSource<W>) {
    weights.template read<T>(name, whole, part, host.get());
  } else {
    const auto all = std::make_unique_for_overwrite<T[]>(std::size_t(weights.at(name).size()));
    weights.template read<T>(name, whole, all.get());
    const auto* bytes = reinterpret_cast<const std::byte*>(all.get());
    convert(TensorEntry{dtype_of<T>(), whole, bytes}, part, host.get());
  }
  index_t extents[Rank] = {part.rows.size()};
  if constexpr (Rank == 2) extents[1] = part.columns.size();
  Tensor<B, T, Rank> tensor(backend, extents);
  backend.upload(host.get(), tensor.view().data, part.size());
  backend.synchronize();  // the host copy goes
  return tensor;
}

/// The same in the backend's own type.
template <Backend B, WeightSource W, int Rank>
auto load_part(B& backend, const W& weights, std::string_view name, const index_t (&shape)[Rank],
               const TensorPart& part) {
  return load_part_as<typename B::value_type>(backend, weights, name, shape, part);
}

}  // namespace dflash
