#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "dflash/text/utf8.hpp"

namespace dflash {

/// The printable characters that stand for the 256 bytes in the vocabulary of a byte-level
/// tokenizer: a printable byte of Latin-1 stands for itself, the others follow from U+0100 on.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    char32_t other = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      characters_[byte] = printable ? char32_t(byte) : other++;
      bytes_[characters_[byte]] = std::int16_t(byte);
    }
  }

  static const ByteAlphabet& get() {
    static const ByteAlphabet alphabet;
    return alphabet;
  }

  char32_t character(std::uint8_t byte) const { return characters_[byte]; }

  /// The characters that stand for these bytes.
  std::string encode(std::string_view bytes) const {
    std::string text;
    for (const char byte : bytes) append_utf8(text, characters_[std::uint8_t(byte)]);
    return text;
  }

  /// The bytes that these characters stand for, if every one stands for one.
  std::optional<std::string> decode(std::string_view text) const {
    std::string bytes;
    for (std::size_t at = 0; at < text.size();) {
      const CodePoint c = code_point_at(text, at);
      if (!c.valid || c.value >= bytes_.size() || bytes_[c.value] < 0) return std::nullopt;
      bytes += char(bytes_[c.value]);
      at += c.size;
    }
    return bytes;
  }

 private:
  static constexpr std::array<std::int16_t, 0x144> none() {
    std::array<std::int16_t, 0x144> all{};
    for (auto& byte : all) byte = -1;
    return all;
  }

  std::array<char32_t, 256> characters_{};
  std::array<std::int16_t, 0x144> bytes_ = none();
};

}  // namespace dflash
