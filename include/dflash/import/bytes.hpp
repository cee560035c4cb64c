#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// Bytes of a file that may be hostile, with its name for errors. Nothing outside them is read.
class FileBytes {
 public:
  FileBytes(std::string name, std::span<const std::byte> bytes)
      : name_(std::move(name)), bytes_(bytes) {}

  const std::string& name() const { return name_; }
  index_t size() const { return index_t(bytes_.size()); }
  [[noreturn]] void fail(const std::string& why) const { throw Error(name_ + ": " + why); }

  /// `count` bytes from `begin`. Error, saying what they were to be, if the file ends before.
  std::span<const std::byte> range(std::uint64_t begin, std::uint64_t count,
                                   const char* what) const {
    if (begin > bytes_.size() || count > bytes_.size() - begin)
      fail("it ends within " + std::string(what));
    return bytes_.subspan(std::size_t(begin), std::size_t(count));
  }

  /// The little-endian number at `begin`.
  template <class T>
  T number(std::uint64_t begin, const char* what) const {
    T value;
    std::memcpy(&value, range(begin, sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::string text(std::uint64_t begin, std::uint64_t count, const char* what) const {
    const auto bytes = range(begin, count, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  std::string name_;
  std::span<const std::byte> bytes_;
};

}  // namespace dflash
