#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// What the names of unfinished files and folders begin with.
inline constexpr std::string_view temporary_prefix = ".tmp-";

/// The n-th name to try for an unfinished version of `path`, in the same folder.
inline std::filesystem::path temporary_name(const std::filesystem::path& path, int n) {
  return path.parent_path() / (std::string(temporary_prefix) + path.filename().string() + "-" +
                               std::to_string(::getpid()) + "-" + std::to_string(n));
}

/// Makes what was renamed or created in a folder, or written to a file, survive a power cut.
inline void flush_to_disk(const std::filesystem::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool ok = file >= 0 && ::fsync(file) == 0;
  const int why = errno;
  if (file >= 0) ::close(file);
  if (!ok) throw Error("cannot flush " + path.string() + ": " + std::strerror(why));
}

/// The folder that a file of this path lies in.
inline std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

/// Removes what killed processes left unfinished in a folder; nobody else may be writing there.
inline void remove_temporaries(const std::filesystem::path& folder) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored))
    if (entry.path().filename().string().starts_with(temporary_prefix))
      std::filesystem::remove_all(entry.path(), ignored);
}

/// A file that appears under its name only when it is complete and on disk: written under a
/// temporary name beside it, flushed, renamed. Without `commit` nothing is left behind.
/// Errors (disk full, quota, device) are one sentence that names the final path.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
    for (int n = 0; file_ < 0; ++n) {
      temporary_ = temporary_name(path_, n);
      file_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (file_ < 0 && errno != EEXIST) fail("cannot create");
    }
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() { abandon(); }

  /// Asks for the disk space of the whole file now, so that a full disk is known before the work.
  void reserve(index_t bytes) {
    int result;
    do result = bytes > 0 ? ::fallocate(file_, FALLOC_FL_KEEP_SIZE, 0, bytes) : 0;
    while (result != 0 && errno == EINTR);
    if (result != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) fail("cannot write");
  }

  /// Appends.
  void write(const void* data, index_t bytes) {
    write_at(end_, data, bytes);
    end_ += bytes;
  }

  /// Writes at an offset; `write` goes on where it was.
  void write_at(index_t offset, const void* data, index_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::pwrite(file_, from, std::size_t(bytes), offset);
      if (n < 0 && errno == EINTR) continue;
      if (n == 0) errno = ENOSPC;
      if (n <= 0) fail("cannot write");
      from += n;
      offset += n;
      bytes -= n;
    }
  }

  /// Flushes the file to disk and gives it its name, replacing a file of that name.
  void commit() {
    if (::fsync(file_) != 0) fail("cannot flush");
    if (::close(std::exchange(file_, -1)) != 0) fail("cannot close");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot rename to");
    temporary_.clear();
    flush_to_disk(folder_of(path_));
  }

  const std::filesystem::path& path() const { return path_; }

 private:
  void abandon() {
    if (file_ >= 0) ::close(std::exchange(file_, -1));
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
    temporary_.clear();
  }
  [[noreturn]] void fail(const char* what) {
    const int why = errno;
    abandon();
    throw Error(std::string(what) + " " + path_.string() + ": " + std::strerror(why));
  }

  std::filesystem::path path_, temporary_;
  int file_ = -1;
  index_t end_ = 0;
};

/// Replaces a file's content at once: readers see the old one or the new one.
inline void write_file(const std::filesystem::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content.data(), index_t(content.size()));
  file.commit();
}

}  // namespace dflash
