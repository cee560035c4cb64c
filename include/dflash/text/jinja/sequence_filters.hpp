#pragma once

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "dflash/text/jinja/text_filters.hpp"

namespace dflash::jinja {

namespace detail {

/// What "a.b.0" leads to from a value; the fallback, if any, stands in for each missing part.
inline Value follow(Value value, const Value& path, const Value* fallback = nullptr) {
  if (path.is_integer()) return item(value, path);
  for (const Value& part : split(string_of(path, "an attribute"), ".", -1, false)) {
    const std::string& name = part.string();
    std::int64_t index = 0;
    const auto read = std::from_chars(name.data(), name.data() + name.size(), index);
    const bool is_index = read.ec == std::errc() && read.ptr == name.data() + name.size();
    value = item(value, is_index ? Value(index) : part);
    if (value.is_undefined() && fallback != nullptr) value = Value(*fallback);
  }
  return value;
}

inline Arguments behind(const Arguments& a, std::size_t skipped) {
  Arguments rest;
  if (a.positional.size() > skipped)
    rest.positional.assign(a.positional.begin() + std::ptrdiff_t(skipped), a.positional.end());
  rest.named = a.named;
  return rest;
}

/// select, reject, selectattr and rejectattr.
template <bool keep, bool by_attribute>
Value filter_select(const Value& v, const Arguments& a) {
  constexpr std::size_t at = by_attribute ? 1 : 0;
  const Test test = a.positional.size() > at
                        ? find_test(string_of(a.positional[at], "the name of a test"))
                        : [](const Value& value, const Arguments&) { return truth(value); };
  const Arguments rest = behind(a, at + 1);
  List out;
  if (!truth(v)) return out;
  for (const Value& one : items_of(v))
    if (test(by_attribute ? follow(one, a.need(0, "attribute")) : one, rest) == keep)
      out.push_back(one);
  return out;
}

/// What sorting and comparing filters look at: an attribute if asked for, letters without case.
inline Value sort_key(const Value& value, const Value& path, bool case_sensitive) {
  const Value key = path.is_none() ? value : follow(value, path);
  return key.is_string() && !case_sensitive ? Value(lower(key.string())) : key;
}

inline Value filter_sort(const Value& v, const Arguments& a) {
  const bool reverse = truth(a.get(0, "reverse", false));
  const bool case_sensitive = truth(a.get(1, "case_sensitive", false));
  const Value path = a.get(2, "attribute", None());
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& one : items_of(v)) keyed.emplace_back(sort_key(one, path, case_sensitive), one);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& x, const auto& y) {
    if (equal(x.first, y.first)) return false;  // also what has no order
    return reverse ? less(y.first, x.first) : less(x.first, y.first);
  });
  List out;
  for (auto& [key, one] : keyed) out.push_back(std::move(one));
  return out;
}

inline Value filter_dictsort(const Value& v, const Arguments& a) {
  if (!v.is_map()) fail("dictsort of a value of type " + type_name(v));
  List pairs;
  for (const auto& [key, value] : v.map()) pairs.push_back(Value::tuple({key, value}));
  const Value by = equal(a.get(1, "by", "key"), "value") ? 1 : 0;
  return filter_sort(pairs,
                     {{a.get(2, "reverse", false), a.get(0, "case_sensitive", false), by}, {}});
}

inline Value filter_unique(const Value& v, const Arguments& a) {
  const bool case_sensitive = truth(a.get(0, "case_sensitive", false));
  const Value path = a.get(1, "attribute", None());
  List out, seen;
  for (const Value& one : items_of(v)) {
    const Value key = sort_key(one, path, case_sensitive);
    if (contains(seen, key)) continue;
    seen.push_back(key);
    out.push_back(one);
  }
  return out;
}

template <bool largest>
Value filter_extreme(const Value& v, const Arguments& a) {
  const bool case_sensitive = truth(a.get(0, "case_sensitive", false));
  const Value path = a.get(1, "attribute", None());
  Value best = Undefined{"an empty sequence has no smallest or largest item"}, best_key;
  for (const Value& one : items_of(v)) {
    const Value key = sort_key(one, path, case_sensitive);
    if (!best.is_undefined() && !(largest ? less(best_key, key) : less(key, best_key))) continue;
    best = one;
    best_key = key;
  }
  return best;
}

inline Value filter_sum(const Value& v, const Arguments& a) {
  const Value path = a.get(0, "attribute", None());
  Value total = a.get(1, "start", 0);
  for (const Value& one : items_of(v))
    total = arithmetic('+', total, path.is_none() ? one : follow(one, path));
  return total;
}

inline Value filter_join(const Value& v, const Arguments& a) {
  const std::string between = text_of(a.get(0, "d", ""));
  const Value path = a.get(1, "attribute", None());
  std::string out;
  bool first = true;
  for (const Value& one : items_of(v)) {
    if (!std::exchange(first, false)) out += between;
    out += text_of(path.is_none() ? one : follow(one, path));
    limit_length(out.size());
  }
  return out;
}

inline Value filter_reverse(const Value& v, const Arguments&) {
  List items = items_of(v);
  std::reverse(items.begin(), items.end());
  if (!v.is_string()) return items;
  std::string out;
  for (const Value& c : items) out += c.string();
  return out;
}

inline Value filter_batch(const Value& v, const Arguments& a) {
  const auto size = integer_of(a.need(0, "linecount"), "the size of a batch");
  if (size < 1 || std::size_t(size) > longest_value) fail("the size of a batch is out of range");
  const Value fill = a.get(1, "fill_with", None());
  List out, line;
  for (const Value& one : items_of(v)) {
    line.push_back(one);
    if (std::int64_t(line.size()) == size) out.emplace_back(std::exchange(line, {}));
  }
  if (line.empty()) return out;
  if (!fill.is_none()) line.resize(std::size_t(size), fill);
  out.emplace_back(std::move(line));
  return out;
}

inline Value filter_items(const Value& v, const Arguments& a) {
  if (v.is_undefined()) return List();
  if (!v.is_map()) fail("items of a value of type " + type_name(v));
  return map_methods().at("items")(v, a);
}

}  // namespace detail

inline const std::unordered_map<std::string_view, Filter>& sequence_filters() {
  using namespace detail;
  static const std::unordered_map<std::string_view, Filter> all = {
      {"select", filter_select<true, false>},
      {"reject", filter_select<false, false>},
      {"selectattr", filter_select<true, true>},
      {"rejectattr", filter_select<false, true>},
      {"sort", filter_sort},
      {"dictsort", filter_dictsort},
      {"unique", filter_unique},
      {"min", filter_extreme<false>},
      {"max", filter_extreme<true>},
      {"sum", filter_sum},
      {"join", filter_join},
      {"reverse", filter_reverse},
      {"batch", filter_batch},
      {"items", filter_items},
      {"list", [](const Value& v, const Arguments&) -> Value { return items_of(v); }},
      {"length", [](const Value& v, const Arguments&) -> Value { return length_of(v); }},
      {"count", [](const Value& v, const Arguments&) -> Value { return length_of(v); }},
      {"first",
       [](const Value& v, const Arguments&) -> Value {
         const List items = items_of(v);
         return items.empty() ? Undefined{"an empty sequence has no first item"} : items.front();
       }},
      {"last",
       [](const Value& v, const Arguments&) -> Value {
         const List items = items_of(v);
         return items.empty() ? Undefined{"an empty sequence has no last item"} : items.back();
       }},
  };
  return all;
}

}  // namespace dflash::jinja
