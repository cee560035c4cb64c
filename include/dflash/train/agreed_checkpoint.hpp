#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dflash/comm/group_operations.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/train/checkpoint_folders.hpp"

namespace dflash {

/// The newest complete checkpoint of an output folder, the same on every rank of the world. Error
/// naming two ranks if they do not see the same: their folders are not one.
template <Backend B, class C>
std::optional<std::filesystem::path> agreed_checkpoint(B& backend, C& world,
                                                       const std::filesystem::path& output) {
  const auto found = find_checkpoints(output);
  const auto newest = one_of_each(backend, world, found.empty() ? -1 : found.rbegin()->first);
  const auto text = [](index_t step) {
    return step < 0 ? std::string("no checkpoint") : checkpoint_name(step);
  };
  for (std::size_t rank = 1; rank < newest.size(); ++rank)
    if (newest[rank] != newest[0])
      throw Error(output.string() + ": rank " + std::to_string(rank) + " sees " +
                  text(newest[rank]) + " there, rank 0 sees " + text(newest[0]) +
                  "; all ranks need one folder");
  return found.empty() ? std::nullopt : std::optional(found.rbegin()->second);
}

}  // namespace dflash
