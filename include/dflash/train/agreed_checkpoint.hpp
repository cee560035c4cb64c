#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dflash/core/host_copy.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/train/checkpoint_folders.hpp"

namespace dflash {

/// The newest complete checkpoint of an output folder, the same on every rank of the world. Error
/// naming two ranks if they do not see the same: their folders are not one.
template <Backend B, class C>
std::optional<std::filesystem::path> agreed_checkpoint(B& backend, C& world,
                                                       const std::filesystem::path& output) {
  const auto found = find_checkpoints(output);
  const index_t own = found.empty() ? -1 : found.rbegin()->first;
  const auto there = uploaded(backend, &own, 1);
  Tensor<B, index_t, 1> all(backend, {world.size()});
  world.all_gather(backend, In<index_t, 1>(there.view()),
                   std::vector<index_t>(std::size_t(world.size()), 1), all.view());
  const auto newest = downloaded(backend, all.view());
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
