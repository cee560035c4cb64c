#pragma once

#include <string>
#include <string_view>
#include <unordered_map>

#include "dflash/text/jinja/tests.hpp"

namespace dflash::jinja {

using Filter = Value (*)(const Value& value, const Arguments& arguments);

namespace detail {

inline Value filter_indent(const Value& v, const Arguments& a) {
  const Value width = a.get(0, "width", 4);
  const std::string space =
      width.is_string() ? width.string() : repeated(" ", integer_of(width, "the width")).string();
  const bool first = truth(a.get(1, "first", false)), blank = truth(a.get(2, "blank", false));
  std::string out;
  bool is_first = true;
  for (const Value& line : split_lines(text_of(v) + "\n", false)) {
    if (!is_first) out += "\n";
    if (is_first ? first : blank || !line.string().empty()) out += space;
    out += line.string();
    limit_length(out.size());
    is_first = false;
  }
  return out;
}

/// Words begin behind white space and opening brackets, not behind apostrophes.
inline Value filter_title(const Value& v, const Arguments&) {
  std::string out;
  bool inside = false;
  for (const char32_t c : to_utf32(text_of(v))) {
    append_utf8(out, inside ? lower_case(c) : upper_case(c));
    inside = !is_space(c) && std::u32string_view(U"-({[<").find(c) == std::u32string_view::npos;
  }
  return out;
}

inline Value filter_escape(const Value& v, const Arguments&) {
  std::string out;
  for (const char c : text_of(v)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

inline Value filter_truncate(const Value& v, const Arguments& a) {
  const Value text = text_of(v);
  const auto length = integer_of(a.get(0, "length", 255), "the length");
  const std::string end = text_of(a.get(2, "end", "..."));
  const auto size = std::int64_t(length_of(text));
  if (size <= length + integer_of(a.get(3, "leeway", 5), "the leeway")) return text;
  const auto kept = length - character_index(end, end.size());
  if (kept < 0) fail("truncate() to less than its ending");
  const std::string cut = slice(text, None(), kept, None()).string();
  if (truth(a.get(1, "killwords", false))) return cut + end;
  return cut.substr(0, cut.rfind(' ')) + end;
}

inline Value filter_wordcount(const Value& v, const Arguments&) {
  std::int64_t words = 0;
  bool inside = false;
  for (const char32_t c : to_utf32(text_of(v))) {
    const bool word = is_word_character(c);
    words += word && !std::exchange(inside, word);
    inside = word;
  }
  return words;
}

inline Value filter_replace(const Value& v, const Arguments& a) {
  const Value count = a.get(2, "count", None());
  return replaced(text_of(v), text_of(a.need(0, "old")), text_of(a.need(1, "new")),
                  count.is_none() ? -1 : integer_of(count, "the count"));
}

}  // namespace detail

inline const std::unordered_map<std::string_view, Filter>& text_filters() {
  using namespace detail;
  static const std::unordered_map<std::string_view, Filter> all = {
      {"indent", filter_indent},
      {"title", filter_title},
      {"escape", filter_escape},
      {"e", filter_escape},
      {"truncate", filter_truncate},
      {"replace", filter_replace},
      {"upper", [](const Value& v, const Arguments&) -> Value { return upper(text_of(v)); }},
      {"lower", [](const Value& v, const Arguments&) -> Value { return lower(text_of(v)); }},
      {"capitalize",
       [](const Value& v, const Arguments&) -> Value { return capitalized(text_of(v)); }},
      {"string", [](const Value& v, const Arguments&) -> Value { return text_of(v); }},
      {"safe", [](const Value& v, const Arguments&) -> Value { return text_of(v); }},
      {"trim",
       [](const Value& v, const Arguments& a) -> Value {
         return strip(text_of(v), a.get(0, "chars", None()), true, true);
       }},
      {"center",
       [](const Value& v, const Arguments& a) {
         return justify_method<0>(text_of(v), {{a.get(0, "width", 80)}, {}});
       }},
      {"wordcount", filter_wordcount},
      {"format",
       [](const Value& v, const Arguments& a) -> Value {
         return percent_format(text_of(v), Value::tuple(a.positional));
       }},
  };
  return all;
}

}  // namespace dflash::jinja
