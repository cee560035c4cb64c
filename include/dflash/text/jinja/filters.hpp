#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "dflash/text/jinja/sequence_filters.hpp"
#include "dflash/text/jinja/text_filters.hpp"

namespace dflash::jinja {

inline Filter find_filter(std::string_view name);

namespace detail {

inline Value filter_default(const Value& v, const Arguments& a) {
  const bool replace = v.is_undefined() || (truth(a.get(1, "boolean", false)) && !truth(v));
  return replace ? a.get(0, "default_value", "") : v;
}

inline Value filter_int(const Value& v, const Arguments& a) {
  const Value fallback = a.get(0, "default", 0);
  if (v.is_integer() || v.is_boolean()) return v.integer();
  if (v.is_real()) return std::isfinite(v.real()) ? Value(std::int64_t(v.real())) : fallback;
  if (!v.is_string()) return fallback;
  const std::string_view text = strip(v.string(), None(), true, true);
  const auto base = integer_of(a.get(1, "base", 10), "the base");
  if (base < 2 || base > 36) fail("the base of int() is not between 2 and 36");
  const std::size_t plus = text.starts_with('+');
  const char* end = text.data() + text.size();
  std::int64_t whole = 0;
  const auto as_whole = std::from_chars(text.data() + plus, end, whole, int(base));
  if (as_whole.ec == std::errc() && as_whole.ptr == end && !text.empty()) return whole;
  double real = 0;
  const auto as_real = std::from_chars(text.data() + plus, end, real);
  const bool fits = as_real.ec == std::errc() && as_real.ptr == end && std::abs(real) < 9e18;
  return fits ? Value(std::int64_t(real)) : fallback;
}

inline Value filter_float(const Value& v, const Arguments& a) {
  if (v.is_number()) return v.real();
  if (!v.is_string()) return a.get(0, "default", 0.0);
  const std::string_view text = strip(v.string(), None(), true, true);
  const char* end = text.data() + text.size();
  double real = 0;
  const auto read = std::from_chars(text.data() + text.starts_with('+'), end, real);
  return read.ec == std::errc() && read.ptr == end ? Value(real) : a.get(0, "default", 0.0);
}

inline Value filter_abs(const Value& v, const Arguments&) {
  return arithmetic(less(v, 0) ? '-' : '+', 0, v);
}

inline Value filter_round(const Value& v, const Arguments& a) {
  if (!v.is_number()) fail("round() of a value of type " + type_name(v));
  const double scale =
      std::pow(10.0, double(integer_of(a.get(0, "precision", 0), "the precision")));
  const Value method = a.get(1, "method", "common");
  if (!v.is_real() && equal(method, "common")) return v.integer();
  const double x = v.real() * scale;
  return (equal(method, "ceil")    ? std::ceil(x)
          : equal(method, "floor") ? std::floor(x)
                                   : std::nearbyint(x)) /
         scale;
}

inline Value filter_tojson(const Value& v, const Arguments& a) {
  JsonStyle style;
  style.ascii = truth(a.get(0, "ensure_ascii", false));
  if (const Value indent = a.get(1, "indent", None()); !indent.is_none()) {
    style.indent = int(std::clamp<std::int64_t>(integer_of(indent, "indent"), 0, 64));
    style.item_separator = ",";
  }
  if (const Value separators = a.get(2, "separators", None()); !separators.is_none()) {
    if (length_of(separators) != 2) fail("'separators' is not a pair");
    style.item_separator = string_of(at_index(separators, 0), "a separator");
    style.key_separator = string_of(at_index(separators, 1), "a separator");
  }
  style.sort_keys = truth(a.get(3, "sort_keys", false));
  return json_text(v, style);
}

inline Value filter_map(const Value& v, const Arguments& a) {
  List out;
  if (!truth(v)) return out;
  if (a.positional.empty()) {
    const Value& path = a.need(0, "attribute");
    const Value* fallback = a.find(1, "default");
    for (const Value& one : items_of(v)) out.push_back(follow(one, path, fallback));
  } else {
    const Filter filter = find_filter(string_of(a.positional[0], "the name of a filter"));
    const Arguments rest = behind(a, 1);
    for (const Value& one : items_of(v)) out.push_back(filter(one, rest));
  }
  return out;
}

}  // namespace detail

/// The filters behind `|`.
inline const std::unordered_map<std::string_view, Filter>& filters() {
  using namespace detail;
  static const std::unordered_map<std::string_view, Filter> all = [] {
    std::unordered_map<std::string_view, Filter> table = {
        {"default", filter_default},
        {"d", filter_default},
        {"int", filter_int},
        {"float", filter_float},
        {"abs", filter_abs},
        {"round", filter_round},
        {"tojson", filter_tojson},
        {"map", filter_map},
        {"attr",
         [](const Value& v, const Arguments& a) {
           return attribute(v, string_of(a.need(0, "name"), "the name of an attribute"));
         }},
    };
    table.insert(text_filters().begin(), text_filters().end());
    table.insert(sequence_filters().begin(), sequence_filters().end());
    return table;
  }();
  return all;
}

/// Failure for a filter that is not known.
inline Filter find_filter(std::string_view name) {
  const auto found = filters().find(name);
  if (found == filters().end()) fail("there is no filter '" + std::string(name) + "'");
  return found->second;
}

}  // namespace dflash::jinja
