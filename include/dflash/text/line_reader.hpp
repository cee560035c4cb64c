#pragma once

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// A file that cannot be read on, where no later line can be had either.
class ReadError : public Error {
 public:
  using Error::Error;
};

/// The lines of a text file, one after another; memory holds one of them. Errors name the path.
class LineReader {
 public:
  explicit LineReader(const std::filesystem::path& path) : path_(path), file_(path) {
    if (std::filesystem::is_directory(path)) throw Error(path.string() + " is a folder");
    if (!file_) throw Error("cannot open " + path.string() + ": " + std::strerror(errno));
  }

  /// False at the end. A last line without a newline counts. ReadError if the file cannot be read;
  /// after another Error the next line follows.
  bool next(std::string& line) {
    line.clear();
    std::size_t length = 0;
    bool ended = false;
    while (!ended && (at_ < size_ || refill())) {
      const char* begin = buffer_.data() + at_;
      const auto* end = static_cast<const char*>(std::memchr(begin, '\n', size_ - at_));
      const std::size_t taken = end != nullptr ? std::size_t(end - begin) : size_ - at_;
      length += taken;
      if (length <= longest) line.append(begin, taken);
      ended = end != nullptr;
      at_ += taken + (ended ? 1 : 0);
    }
    if (length == 0 && !ended) return false;
    ++number_;
    if (length > longest)
      throw Error(path_.string() + ", line " + std::to_string(number_) + " is longer than " +
                  std::to_string(longest >> 20) + " MiB");
    return true;
  }

  /// Of the line read last, counted from 1.
  index_t number() const { return number_; }
  const std::filesystem::path& path() const { return path_; }

  static constexpr std::size_t longest = std::size_t(1) << 28;

 private:
  bool refill() {
    file_.read(buffer_.data(), std::streamsize(buffer_.size()));
    at_ = 0;
    size_ = std::size_t(file_.gcount());
    if (file_.bad()) throw ReadError("cannot read " + path_.string() + ": " + std::strerror(errno));
    return size_ > 0;
  }

  std::filesystem::path path_;
  std::ifstream file_;
  std::vector<char> buffer_ = std::vector<char>(std::size_t(1) << 16);
  std::size_t at_ = 0, size_ = 0;
  index_t number_ = 0;
};

}  // namespace dflash
