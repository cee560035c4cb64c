#pragma once

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"
#include "dflash/io/atomic_file.hpp"
#include "dflash/io/atomic_folder.hpp"
#include "dflash/io/folder_lock.hpp"

namespace dflash {

/// The files of a checkpoint.
inline constexpr const char* checkpoint_files[] = {"config.json", "model.safetensors",
                                                   "optimizer.safetensors", "trainer_state.json"};

/// "step-000123".
inline std::string checkpoint_name(index_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step-%06td", step);
  return name;
}

/// The complete checkpoints of an output folder, by step.
inline std::map<index_t, std::filesystem::path> find_checkpoints(
    const std::filesystem::path& output) {
  constexpr std::string_view prefix = "step-";
  std::map<index_t, std::filesystem::path> found;
  std::error_code missing;
  for (const auto& entry : std::filesystem::directory_iterator(output, missing)) {
    const std::string name = entry.path().filename().string();
    index_t step = 0;
    if (!name.starts_with(prefix)) continue;
    std::from_chars(name.data() + prefix.size(), name.data() + name.size(), step);
    const bool complete =
        std::all_of(std::begin(checkpoint_files), std::end(checkpoint_files),
                    [&](const char* file) { return std::filesystem::exists(entry.path() / file); });
    if (name == checkpoint_name(step) && complete) found[step] = entry.path();
  }
  return found;
}

/// The complete checkpoint of the highest step, whatever the file `latest` says: a process may have
/// been killed before it wrote that.
inline std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& output) {
  const auto all = find_checkpoints(output);
  return all.empty() ? std::nullopt : std::optional(all.rbegin()->second);
}

/// The output folder of a training run: its checkpoints `step-000123/`, the file `latest` with the
/// name of the newest, and the rotation of old ones. A kill at any moment leaves complete
/// checkpoints only. One run at a time has the folder.
class CheckpointFolders {
 public:
  /// Creates the folder and removes what a killed run left unfinished. `keep`: how many of the
  /// newest checkpoints stay; 0 for all. Error if another run writes there.
  explicit CheckpointFolders(std::filesystem::path output, index_t keep = 0)
      : output_(std::move(output)), keep_(keep) {
    if (keep < 0)
      throw Error("the number of checkpoints to keep must be at least 0, got " +
                  std::to_string(keep));
    std::error_code why;
    std::filesystem::create_directories(output_, why);
    if (why) throw Error("cannot create " + output_.string() + ": " + why.message());
    lock_.emplace(output_);
    remove_temporaries(output_);
  }

  const std::filesystem::path& output() const { return output_; }
  std::optional<std::filesystem::path> latest() const { return latest_checkpoint(output_); }

  /// Saves a checkpoint: `write(folder)` is to write all its files. Checkpoints of later steps are
  /// those of a run that was rewound, and go. Returns the folder.
  template <class Write>
  std::filesystem::path save(index_t step, Write&& write) const {
    const auto path = output_ / checkpoint_name(step);
    AtomicFolder folder(path);
    write(folder.path());
    for (const auto& [other, where] : find_checkpoints(output_))
      if (other > step) remove(where);
    folder.commit();
    write_file(output_ / "latest", checkpoint_name(step) + "\n");
    auto all = find_checkpoints(output_);
    for (; keep_ > 0 && index_t(all.size()) > keep_; all.erase(all.begin()))
      remove(all.begin()->second);
    return path;
  }

 private:
  /// Takes the name away first: a folder that is half removed must not look like a checkpoint.
  static void remove(const std::filesystem::path& folder) {
    std::filesystem::path doomed;
    for (int n = 0; doomed.empty() || std::filesystem::exists(doomed); ++n)
      doomed = temporary_name(folder, n);
    std::error_code why;
    std::filesystem::rename(folder, doomed, why);
    if (!why) std::filesystem::remove_all(doomed, why);
    if (why) throw Error("cannot remove " + folder.string() + ": " + why.message());
  }

  std::filesystem::path output_;
  index_t keep_;
  std::optional<FolderLock> lock_;
};

}  // namespace dflash
