#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dflash/io/weights_folder.hpp"
#include "dflash/model/parameters.hpp"

namespace dflash {

/// The weights of a draft from its folder: a checkpoint of ours or any published draft. Error
/// naming the file and the tensor if one is missing or has another shape than the config says, or
/// is of a layer that the config does not have.
template <Backend B>
Parameters<B> read_parameters(B& backend, const DraftConfig& config,
                              const std::filesystem::path& folder) {
  using T = typename B::value_type;
  const WeightsFolder file(folder);
  const std::string beyond = "layers." + std::to_string(config.layers) + ".";
  for (const std::string& name : file.names())
    if (name.starts_with(beyond))
      throw Error(folder.string() + ": tensor " + in_quotes(name) +
                  " is of a layer more than the " + std::to_string(config.layers) +
                  " that the draft has");
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
