#pragma once

#include <fcntl.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "dflash/core/error.hpp"
#include "dflash/io/atomic_file.hpp"

namespace dflash {

/// A folder that appears under its name only when all its files are on disk: filled under a
/// temporary name beside it, flushed, renamed. Without `commit` nothing is left behind.
class AtomicFolder {
 public:
  explicit AtomicFolder(std::filesystem::path path) : target_(std::move(path)) {
    if (!target_.has_filename()) target_ = target_.parent_path();  // "a/b/" is a/b
    std::error_code why;
    std::filesystem::create_directories(folder_of(target_), why);
    for (int n = 0; !why; ++n) {
      temporary_ = temporary_name(target_, n);
      if (std::filesystem::create_directory(temporary_, why)) return;
    }
    throw Error("cannot create " + target_.string() + ": " + why.message());
  }
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  ~AtomicFolder() {
    std::error_code ignored;
    if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
  }

  /// Where the files are to be written.
  const std::filesystem::path& path() const { return temporary_; }

  /// Flushes all files and gives the folder its name; a folder of that name is replaced.
  void commit() {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(temporary_))
      if (entry.is_regular_file() || entry.is_directory()) flush_to_disk(entry.path());
    flush_to_disk(temporary_);
    if (std::filesystem::exists(target_)) {
      // Swapped in one step where the file system can, so that one complete folder is always there.
      if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) !=
          0) {
        std::filesystem::path old;
        for (int n = 0; old.empty() || std::filesystem::exists(old); ++n)
          old = temporary_name(target_, n);
        rename(target_, old);
        rename(temporary_, target_);
        temporary_ = old;
      }
      flush_to_disk(folder_of(target_));
      std::error_code ignored;
      std::filesystem::remove_all(temporary_, ignored);
    } else {
      rename(temporary_, target_);
      flush_to_disk(folder_of(target_));
    }
    temporary_.clear();
  }

 private:
  void rename(const std::filesystem::path& from, const std::filesystem::path& to) const {
    if (::rename(from.c_str(), to.c_str()) != 0)
      throw Error("cannot rename to " + target_.string() + ": " + std::strerror(errno));
  }

  std::filesystem::path target_, temporary_;
};

}  // namespace dflash
