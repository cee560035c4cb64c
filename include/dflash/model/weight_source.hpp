#pragma once

#include <concepts>
#include <memory>
#include <string_view>
#include <vector>

#include "dflash/core/tensor.hpp"

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

/// A tensor of the given shape, from a source into the backend's memory.
template <Backend B, WeightSource W, int Rank>
Tensor<B, typename B::value_type, Rank> load_tensor(B& backend, const W& weights,
                                                    std::string_view name,
                                                    const index_t (&shape)[Rank]) {
  using T = typename B::value_type;
  // As large as the tensor in the source: a config that lies cannot ask for more.
  const index_t size = weights.at(name).size();
  const auto host = std::make_unique_for_overwrite<T[]>(std::size_t(size));
  weights.template read<T>(name, std::vector<index_t>(shape, shape + Rank), host.get());
  Tensor<B, T, Rank> tensor(backend, shape);
  backend.upload(host.get(), tensor.view().data, size);
  backend.synchronize();  // the host copy goes
  return tensor;
}

}  // namespace dflash
