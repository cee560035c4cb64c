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

/// The lines of a text file, one after another; memory holds one of them. Errors name the path.
class LineReader {
 public:
  explicit LineReader(const std::filesystem::path& path) : path_(path), file_(path) {
    if (std::filesystem::is_directory(path)) throw Error(path.string() + " is a folder");
    if (!file_) throw Error("cannot open " + path.string() + ": " + std::strerror(errno));
  }

  /// False at the end. A last line without a newline counts.
  bool next(std::string& line) {
    line.clear();
    while (true) {
      if (at_ == size_ && !refill()) break;
      const char* begin = buffer_.data() + at_;
      const auto* end = static_cast<const char*>(std::memchr(begin, '\n', size_ - at_));
      const std::size_t taken = end != nullptr ? std::size_t(end - begin) : size_ - at_;
      if (line.size() + taken > longest)
        throw Error(path_.string() + ", line " + std::to_string(number_ + 1) + " is longer than " +
                    std::to_string(longest >> 20) + " MiB");
      line.append(begin, taken);
      at_ += taken;
      if (end == nullptr) continue;
      ++at_;
      ++number_;
      return true;
    }
    if (line.empty()) return false;
    ++number_;
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
    if (file_.bad()) throw Error("cannot read " + path_.string() + ": " + std::strerror(errno));
    return size_ > 0;
  }

  std::filesystem::path path_;
  std::ifstream file_;
  std::vector<char> buffer_ = std::vector<char>(std::size_t(1) << 16);
  std::size_t at_ = 0, size_ = 0;
  index_t number_ = 0;
};

}  // namespace dflash
