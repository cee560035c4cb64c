#pragma once

#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "dflash/text/jinja/value.hpp"
#include "dflash/text/unicode.hpp"
#include "dflash/text/utf8.hpp"

namespace dflash::jinja {

/// No value of a chat lies deeper; keeps a hostile one from exhausting the stack.
inline constexpr int deepest_value = 200;

/// Longest string or list that a template makes, so that a hostile one fails instead of filling the
/// memory.
inline constexpr std::size_t longest_value = std::size_t(1) << 24;

/// Failure if a string or list of that size is too long.
inline void limit_length(std::size_t size) {
  if (size > longest_value) fail("a string or list is too long");
}

/// A number as Python writes it: 1.0, 0.1, 1e+16.
inline std::string real_text(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto shortest =
      std::to_chars(buffer, buffer + sizeof buffer, x, std::chars_format::scientific);
  std::string digits;
  std::string_view all(buffer, std::size_t(shortest.ptr - buffer));
  const bool negative = all.front() == '-';
  if (negative) all.remove_prefix(1);
  const std::size_t e = all.find('e');
  for (const char c : all.substr(0, e))
    if (c != '.') digits += c;
  int exponent = 0;
  const std::size_t first = e + (all[e + 1] == '+' ? 2 : 1);
  std::from_chars(all.data() + first, all.data() + all.size(), exponent);
  const auto count = int(digits.size());
  std::string out;
  if (exponent < -4 || exponent >= 16) {
    out = digits.substr(0, 1) + (count > 1 ? "." + digits.substr(1) : "");
    const std::string size = std::to_string(std::abs(exponent));
    out += std::string(exponent < 0 ? "e-" : "e+") + (size.size() < 2 ? "0" : "") + size;
  } else if (exponent < 0) {
    out = "0." + std::string(std::size_t(-exponent - 1), '0') + digits;
  } else if (count <= exponent + 1) {
    out = digits + std::string(std::size_t(exponent + 1 - count), '0') + ".0";
  } else {
    out = digits.substr(0, std::size_t(exponent + 1)) + "." +
          digits.substr(std::size_t(exponent + 1));
  }
  return (negative ? "-" : "") + out;
}

namespace detail {

inline std::string hex(char32_t c, int width) {
  std::string text(std::size_t(width), '0');
  for (int i = width - 1; i >= 0; --i, c >>= 4) text[std::size_t(i)] = "0123456789abcdef"[c & 15];
  return text;
}

}  // namespace detail

/// A string as Python's repr writes it.
inline std::string python_quoted(std::string_view text) {
  const bool single = text.find('\'') == text.npos || text.find('"') != text.npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  for (const char32_t c : to_utf32(text)) {
    if (c == char32_t(quote) || c == '\\')
      (out += '\\') += char(c);
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (is_printable(c))
      append_utf8(out, c);
    else if (c < 0x100)
      out += "\\x" + detail::hex(c, 2);
    else
      out += c < 0x10000 ? "\\u" + detail::hex(c, 4) : "\\U" + detail::hex(c, 8);
  }
  return out + quote;
}

/// A value as Python's repr writes it.
inline std::string repr(const Value& value, int depth = 0) {
  if (depth > deepest_value) fail("a value is nested too deeply");
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "None";
  if (value.is_boolean()) return value.boolean() ? "True" : "False";
  if (value.is_integer()) return std::to_string(value.integer());
  if (value.is_real()) return real_text(value.real());
  if (value.is_string()) return python_quoted(value.string());
  if (value.is_list()) {
    std::string out = "[";
    for (const Value& item : value.list()) {
      if (out.size() > 1) out += ", ";
      out += repr(item, depth + 1);
      limit_length(out.size());
    }
    return out + "]";
  }
  if (value.is_map()) {
    std::string out = "{";
    for (const auto& [key, item] : value.map()) {
      if (out.size() > 1) out += ", ";
      out += python_quoted(key) + ": " + repr(item, depth + 1);
      limit_length(out.size());
    }
    return out + "}";
  }
  return "<" + type_name(value) + ">";
}

/// A value as a template prints it.
inline std::string text_of(const Value& value) {
  if (value.is_string()) return value.string();
  if (value.is_undefined()) return "";
  return repr(value);
}

struct JsonStyle {
  int indent = -1;  // < 0: on one line
  std::string item_separator = ", ", key_separator = ": ";
  bool ascii = false, sort_keys = false;
};

namespace detail {

inline void append_json_string(std::string_view text, bool ascii, std::string& out) {
  out += '"';
  for (const char32_t c : to_utf32(text)) {
    if (c == '"' || c == '\\')
      (out += '\\') += char(c);
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (c == '\b')
      out += "\\b";
    else if (c == '\f')
      out += "\\f";
    else if (c < 0x20 || (ascii && c >= 0x7F && c < 0x10000))
      out += "\\u" + hex(c, 4);
    else if (ascii && c >= 0x10000)
      out += "\\u" + hex(0xD800 + ((c - 0x10000) >> 10), 4) + "\\u" +
             hex(0xDC00 + ((c - 0x10000) & 0x3FF), 4);
    else
      append_utf8(out, c);
  }
  out += '"';
}

inline void append_json(const Value& value, const JsonStyle& style, int depth, std::string& out) {
  if (depth > deepest_value) fail("a value is nested too deeply");
  limit_length(out.size());
  const auto line = [&](int level) {
    if (style.indent >= 0) out += "\n" + std::string(std::size_t(style.indent * level), ' ');
  };
  if (value.is_none()) {
    out += "null";
  } else if (value.is_boolean()) {
    out += value.boolean() ? "true" : "false";
  } else if (value.is_real()) {
    const double x = value.real();
    out += std::isnan(x)   ? "NaN"
           : std::isinf(x) ? (x < 0 ? "-Infinity" : "Infinity")
                           : real_text(x);
  } else if (value.is_integer()) {
    out += std::to_string(value.integer());
  } else if (value.is_string()) {
    append_json_string(value.string(), style.ascii, out);
  } else if (value.is_list()) {
    out += '[';
    bool first = true;
    for (const Value& item : value.list()) {
      if (!std::exchange(first, false)) out += style.item_separator;
      line(depth + 1);
      append_json(item, style, depth + 1, out);
    }
    if (!first) line(depth);
    out += ']';
  } else if (value.is_map()) {
    std::vector<Map::Entry> entries(value.map().begin(), value.map().end());
    if (style.sort_keys)
      std::sort(entries.begin(), entries.end(),
                [](const auto& a, const auto& b) { return a.first < b.first; });
    out += '{';
    bool first = true;
    for (const auto& [key, item] : entries) {
      if (!std::exchange(first, false)) out += style.item_separator;
      line(depth + 1);
      append_json_string(key, style.ascii, out);
      out += style.key_separator;
      append_json(item, style, depth + 1, out);
    }
    if (!first) line(depth);
    out += '}';
  } else {
    fail("a value of type " + type_name(value) + " cannot be written as JSON");
  }
}

}  // namespace detail

/// A value as JSON, spaced as Python's json.dumps does it.
inline std::string json_text(const Value& value, const JsonStyle& style = {}) {
  std::string out;
  detail::append_json(value, style, 0, out);
  limit_length(out.size());
  return out;
}

}  // namespace dflash::jinja
