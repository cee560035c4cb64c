#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/text/jinja/operations.hpp"
#include "dflash/text/unicode.hpp"
#include "dflash/text/utf8.hpp"

namespace dflash::jinja {

/// What Python's str.isspace accepts: White_Space and the four separators of ASCII.
inline bool is_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

/// Takes characters of `set` (white space if it is none) from the chosen ends.
inline std::string_view strip(std::string_view text, const Value& set, bool left, bool right) {
  const std::u32string characters =
      set.is_none() ? std::u32string() : to_utf32(string_of(set, "the argument of strip"));
  const auto goes = [&](char32_t c) {
    return set.is_none() ? is_space(c) : characters.find(c) != std::u32string::npos;
  };
  while (left && !text.empty()) {
    const CodePoint c = code_point_at(text, 0);
    if (!goes(c.value)) break;
    text.remove_prefix(c.size);
  }
  while (right && !text.empty()) {
    const std::size_t at = code_point_before(text, text.size());
    if (!goes(code_point_at(text, at).value)) break;
    text = text.substr(0, at);
  }
  return text;
}

inline std::string lower(std::string_view text) {
  std::string out;
  for (const char32_t c : to_utf32(text)) append_utf8(out, lower_case(c));
  return out;
}

inline std::string upper(std::string_view text) {
  std::string out;
  for (const char32_t c : to_utf32(text)) {
    if (c == 0xDF)
      out += "SS";
    else
      append_utf8(out, upper_case(c));
  }
  return out;
}

inline std::string capitalized(std::string_view text) {
  std::u32string all = to_utf32(lower(text));
  if (!all.empty()) all[0] = title_case(all[0]);
  return to_utf8(all);
}

/// First letters of words in upper case as str.title does it: a word begins at every letter that
/// follows no letter.
inline std::string titled(std::string_view text) {
  std::string out;
  bool inside = false;
  for (const char32_t c : to_utf32(text)) {
    append_utf8(out, inside ? lower_case(c) : title_case(c));
    inside = is_letter(c);
  }
  return out;
}

inline std::string replaced(std::string_view text, std::string_view from, std::string_view to,
                            std::int64_t most = -1) {
  std::string out;
  std::size_t at = 0;
  for (; most != 0; --most) {
    const std::size_t found = text.find(from, at);
    if (found == text.npos) break;
    out.append(text, at, found - at).append(to);
    limit_length(out.size());
    at = found + from.size();
    if (!from.empty()) continue;
    if (at >= text.size()) return out;  // an empty text stands before each character and at the end
    const std::size_t size = code_point_at(text, at).size;
    out.append(text, at, size);
    at += size;
  }
  return out.append(text, at);
}

/// str.split and str.rsplit. Without a separator: at runs of white space, none at the ends.
inline List split(std::string_view text, const Value& separator, std::int64_t most,
                  bool from_right) {
  std::vector<std::string_view> parts;
  const auto enough = [&] { return most >= 0 && std::int64_t(parts.size()) >= most; };
  if (separator.is_none()) {
    text = strip(text, None(), !from_right, from_right);
    while (!text.empty() && !enough()) {
      std::size_t at = from_right ? text.size() : 0;
      while (from_right ? at > 0 : at < text.size()) {
        const std::size_t next = from_right ? code_point_before(text, at) : at;
        const CodePoint c = code_point_at(text, next);
        if (is_space(c.value)) break;
        at = from_right ? next : at + c.size;
      }
      parts.push_back(from_right ? text.substr(at) : text.substr(0, at));
      text =
          strip(from_right ? text.substr(0, at) : text.substr(at), None(), !from_right, from_right);
    }
    if (!text.empty()) parts.push_back(text);
  } else {
    const std::string& by = string_of(separator, "the separator of split");
    if (by.empty()) fail("the separator of split is empty");
    while (!enough()) {
      const std::size_t found = from_right ? text.rfind(by) : text.find(by);
      if (found == text.npos) break;
      parts.push_back(from_right ? text.substr(found + by.size()) : text.substr(0, found));
      text = from_right ? text.substr(0, found) : text.substr(found + by.size());
    }
    parts.push_back(text);
  }
  List out;
  if (from_right)
    out.assign(parts.rbegin(), parts.rend());
  else
    out.assign(parts.begin(), parts.end());
  return out;
}

/// str.splitlines.
inline List split_lines(std::string_view text, bool keep_ends) {
  List out;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point_at(text, at);
    std::size_t end = at + c.size;
    const bool breaks = (c.value >= 0x0A && c.value <= 0x0D) ||
                        (c.value >= 0x1C && c.value <= 0x1E) || c.value == 0x85 ||
                        c.value == 0x2028 || c.value == 0x2029;
    if (breaks) {
      if (c.value == '\r' && end < text.size() && text[end] == '\n') ++end;
      out.emplace_back(text.substr(begin, (keep_ends ? end : at) - begin));
      begin = end;
    }
    at = end;
  }
  if (begin < text.size()) out.emplace_back(text.substr(begin));
  return out;
}

/// Number of characters in the first `bytes` bytes.
inline std::int64_t character_index(std::string_view text, std::size_t bytes) {
  std::int64_t n = 0;
  for (const char c : text.substr(0, bytes)) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

/// Number of bytes in the first `characters` characters.
inline std::size_t byte_index(std::string_view text, std::int64_t characters) {
  std::size_t at = 0;
  for (; at < text.size() && characters > 0; --characters) at += code_point_at(text, at).size;
  return at;
}

/// A bound as str.find and list.index take it: from the end of `size` if negative, the fallback if
/// none.
inline std::int64_t search_bound(const Value& given, std::int64_t size, std::int64_t fallback) {
  if (given.is_none()) return fallback;
  const std::int64_t at = integer_of(given, "the bound of a search");
  return at < 0 ? std::max<std::int64_t>(at + size, 0) : at;
}

/// text[start:stop] of those bounds, in characters; nothing if it would begin behind its end.
inline std::optional<std::string_view> searched_part(std::string_view text, const Value& start,
                                                     const Value& stop) {
  if (start.is_none() && stop.is_none()) return text;
  const std::int64_t size = character_index(text, text.size());
  const std::int64_t first = search_bound(start, size, 0),
                     last = std::min(search_bound(stop, size, size), size);
  if (first > last) return std::nullopt;
  const std::size_t begin = byte_index(text, first);
  return text.substr(begin, byte_index(text, last) - begin);
}

/// Number of times that `part` stands in `text` without overlap.
inline std::int64_t count_of(std::string_view text, std::string_view part) {
  if (part.empty()) return character_index(text, text.size()) + 1;
  std::int64_t n = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + part.size()))
    ++n;
  return n;
}

/// `format % values` with %s, %r, %d, %i, %f, %x and %%, widths and precisions; only a tuple is
/// several values.
inline std::string percent_format(std::string_view format, const Value& values) {
  const List all = values.is_tuple() ? values.list() : List{values};
  std::string out;
  std::size_t used = 0;
  for (std::size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%') {
      out += format[at];
      continue;
    }
    std::string spec;
    while (++at < format.size() &&
           std::string_view("-+ 0#.123456789").find(format[at]) != spec.npos)
      spec += format[at];
    if (at >= format.size() || spec.size() > 8) fail("a '%' format is incomplete");
    const char kind = format[at];
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (used >= all.size()) fail("a '%' format has too few values");
    const Value& value = all[used++];
    char buffer[512];
    if (kind == 's' || kind == 'r') {
      std::string text = kind == 's' ? text_of(value) : repr(value);
      if (const std::size_t dot = spec.find('.'); dot != spec.npos) {
        const auto most = Value(std::int64_t(std::atoi(spec.c_str() + dot + 1)));
        text = slice(text, None(), most, None()).string();
      }
      const int width = std::atoi(spec.c_str());
      const auto size = int(character_index(text, text.size()));
      const std::string space(std::size_t(std::max(0, std::abs(width) - size)), ' ');
      out += width < 0 ? text + space : space + text;
      limit_length(out.size());
      continue;
    }
    const bool whole = kind == 'd' || kind == 'i' || kind == 'x' || kind == 'X';
    if ((!whole && kind != 'f' && kind != 'g' && kind != 'e') || !value.is_number())
      fail(std::string("a '%") + kind + "' format does not go with a value of type " +
           type_name(value));
    const std::string full = "%" + spec + (whole ? "ll" : "") + kind;
    const int size =
        whole ? std::snprintf(buffer, sizeof buffer, full.c_str(),
                              static_cast<long long>(value.is_real() ? std::int64_t(value.real())
                                                                     : value.integer()))
              : std::snprintf(buffer, sizeof buffer, full.c_str(), value.real());
    if (size < 0 || size >= int(sizeof buffer)) fail("a '%' format makes too long a text");
    out += buffer;
  }
  return out;
}

}  // namespace dflash::jinja
