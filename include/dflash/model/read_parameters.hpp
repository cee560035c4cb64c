#pragma once

#include <filesystem>
#include <vector>

#include "dflash/io/weights_folder.hpp"
#include "dflash/model/parameters.hpp"

namespace dflash {

/// The weights of a draft from its folder: a checkpoint of ours or any published draft. Error
/// naming the file and the tensor if one is missing or has another shape than the config says.
template <Backend B>
Parameters<B> read_parameters(B& backend, const DraftConfig& config,
                              const std::filesystem::path& folder) {
  using T = typename B::value_type;
  const WeightsFolder file(folder);
  Parameters<B> parameters(backend, config);
  std::vector<T> values;
  for (const ParameterSlot& slot : parameters.slots()) {
    values.resize(static_cast<std::size_t>(slot.size));
    file.read(slot.name, slot.shape, values.data());
    backend.upload(values.data(), parameters.flat().data + slot.offset, slot.size);
  }
  return parameters;
}

}  // namespace dflash
