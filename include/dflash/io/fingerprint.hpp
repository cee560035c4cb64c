#pragma once

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#include <xxhash.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/io/mapped_file.hpp"
#include "dflash/io/tensor_entry.hpp"

namespace dflash {

/// XXH3-64 of some bytes (github.com/Cyan4973/xxHash).
inline std::uint64_t xxh3(const void* data, index_t bytes, std::uint64_t seed = 0) {
  return XXH3_64bits_withSeed(data, std::size_t(bytes), seed);
}

/// Gathers what something consists of into a short text; the same content gives the same text, on
/// any machine and under any path.
class Fingerprint {
 public:
  Fingerprint& add(const void* data, index_t bytes) {
    hash_ = xxh3(data, bytes, hash_ ^ std::uint64_t(bytes));
    return *this;
  }
  Fingerprint& add(std::string_view text) { return add(text.data(), index_t(text.size())); }
  Fingerprint& add(std::uint64_t number) { return add(&number, sizeof number); }

  /// Name, type, shape and content; of a large tensor's content 16 pieces that lie evenly.
  Fingerprint& add(std::string_view name, const TensorEntry& tensor) {
    constexpr index_t pieces = 16, piece = 4096, whole = 1 << 20;
    add(name).add(name_of(tensor.dtype)).add(to_string(tensor.shape));
    const index_t bytes = tensor.bytes();
    if (bytes <= whole) return add(tensor.data, bytes);
    for (index_t i = 0; i < pieces; ++i)
      add(tensor.data + (bytes - piece) * i / (pieces - 1), piece);
    return *this;
  }

  /// Such as "xxh3:0123456789abcdef".
  std::string text() const {
    std::string digits = "xxh3:";
    for (int shift = 60; shift >= 0; shift -= 4) digits += "0123456789abcdef"[hash_ >> shift & 15];
    return digits;
  }

 private:
  std::uint64_t hash_ = 0;
};

/// Of a file's content.
inline std::string fingerprint_of_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  return Fingerprint().add(file.data(), file.size()).text();
}

}  // namespace dflash
