#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dflash {

/// A name from a file for an error message: in quotes, control characters escaped, cut if long.
inline std::string in_quotes(std::string_view name) {
  constexpr std::size_t longest = 120;
  std::string text = "\"";
  for (const char c : name.substr(0, longest)) {
    if (std::uint8_t(c) >= 0x20 && c != 0x7f) {
      text += c;
    } else {
      constexpr char digits[] = "0123456789abcdef";
      text += "\\x";
      text += digits[std::uint8_t(c) >> 4];
      text += digits[std::uint8_t(c) & 15];
    }
  }
  return text + (name.size() > longest ? "...\"" : "\"");
}

}  // namespace dflash
