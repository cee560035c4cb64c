#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// A whole file as read-only memory; pages are read when they are touched. Errors name the path.
/// Who shortens a file while it is mapped ends the processes that read the lost part (SIGBUS).
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path) : path_(path) {
    // O_NONBLOCK: opening a pipe must not wait for its writer.
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) fail("cannot open");
    struct stat status;
    if (::fstat(file, &status) != 0) {
      const int why = errno;
      ::close(file);
      errno = why;
      fail("cannot read the size of");
    }
    if (!S_ISREG(status.st_mode)) {
      ::close(file);
      throw Error(path.string() + " is not a regular file");
    }
    size_ = status.st_size;
    if (size_ > 0) {
      void* memory = ::mmap(nullptr, std::size_t(size_), PROT_READ, MAP_PRIVATE, file, 0);
      const int why = errno;
      ::close(file);
      errno = why;
      if (memory == MAP_FAILED) fail("cannot map");
      data_ = static_cast<const std::byte*>(memory);
    } else {
      ::close(file);
    }
  }
  MappedFile(MappedFile&& o) noexcept
      : path_(std::move(o.path_)),
        data_(std::exchange(o.data_, nullptr)),
        size_(std::exchange(o.size_, 0)) {}
  MappedFile& operator=(MappedFile&& o) noexcept {
    std::swap(path_, o.path_);
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    return *this;
  }
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), std::size_t(size_));
  }

  const std::byte* data() const { return data_; }
  index_t size() const { return size_; }  // bytes
  const std::filesystem::path& path() const { return path_; }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw Error(std::string(what) + " " + path_.string() + ": " + std::strerror(errno));
  }

  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  index_t size_ = 0;
};

}  // namespace dflash
