#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "dflash/text/jinja/format.hpp"
#include "dflash/text/jinja/value.hpp"
#include "dflash/text/utf8.hpp"

namespace dflash::jinja {

/// Python's ==.
inline bool equal(const Value& a, const Value& b, int depth = 0) {
  if (depth > deepest_value) fail("a value is nested too deeply");
  if (a.is_number() && b.is_number())
    return a.is_real() || b.is_real() ? a.real() == b.real() : a.integer() == b.integer();
  if (a.is_string() && b.is_string()) return a.string() == b.string();
  if (a.is_list() && b.is_list()) {
    if (a.list().size() != b.list().size()) return false;
    for (std::size_t i = 0; i < a.list().size(); ++i)
      if (!equal(a.list()[i], b.list()[i], depth + 1)) return false;
    return true;
  }
  if (a.is_map() && b.is_map()) {
    if (a.map().size() != b.map().size()) return false;
    for (const auto& [key, value] : a.map()) {
      const Value* other = b.map().find(key);
      if (other == nullptr || !equal(value, *other, depth + 1)) return false;
    }
    return true;
  }
  if (a.is_undefined() && b.is_undefined()) return true;
  return a.same(b);
}

/// Python's <. Failure for what has no order.
inline bool less(const Value& a, const Value& b, int depth = 0) {
  if (depth > deepest_value) fail("a value is nested too deeply");
  if (a.is_number() && b.is_number())
    return a.is_real() || b.is_real() ? a.real() < b.real() : a.integer() < b.integer();
  if (a.is_string() && b.is_string()) return a.string() < b.string();  // UTF-8 keeps the order
  if (a.is_list() && b.is_list()) {
    const std::size_t n = std::min(a.list().size(), b.list().size());
    for (std::size_t i = 0; i < n; ++i)
      if (!equal(a.list()[i], b.list()[i])) return less(a.list()[i], b.list()[i], depth + 1);
    return a.list().size() < b.list().size();
  }
  if (a.is_undefined()) fail(a.undefined());
  if (b.is_undefined()) fail(b.undefined());
  fail("values of type " + type_name(a) + " and " + type_name(b) + " have no order");
}

/// The values that `for` goes over: items of a list, keys of a map, characters of a string.
inline List items_of(const Value& value) {
  if (value.is_list()) return value.list();
  List items;
  if (value.is_map()) {
    for (const auto& [key, item] : value.map()) items.emplace_back(key);
  } else if (value.is_string()) {
    for (std::size_t at = 0; at < value.string().size();) {
      const CodePoint c = code_point_at(value.string(), at);
      items.emplace_back(value.string().substr(at, c.size));
      at += c.size;
    }
  } else if (!value.is_undefined()) {
    fail("a value of type " + type_name(value) + " cannot be iterated over");
  }
  return items;
}

/// Python's `item in container`.
inline bool contains(const Value& container, const Value& item) {
  if (container.is_string())
    return container.string().find(string_of(item, "the left side of 'in'")) != std::string::npos;
  if (container.is_map()) return item.is_string() && container.map().contains(item.string());
  for (const Value& value : items_of(container))
    if (equal(value, item)) return true;
  return false;
}

/// Number of characters, items or keys.
inline std::size_t length_of(const Value& value) {
  if (value.is_list()) return value.list().size();
  if (value.is_map()) return value.map().size();
  if (value.is_undefined()) return 0;
  if (!value.is_string()) fail("a value of type " + type_name(value) + " has no length");
  std::size_t n = 0;
  for (const char c : value.string()) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

/// value[index] for a string or list, from the end if negative; undefined if there is none.
inline Value at_index(const Value& value, std::int64_t index) {
  const auto size = std::int64_t(length_of(value));
  if (index < 0) index += size;
  if (index < 0 || index >= size)
    return Undefined{"an index lies outside of a " + type_name(value)};
  if (value.is_list()) return value.list()[std::size_t(index)];
  return items_of(value)[std::size_t(index)];
}

/// value[start:stop:step], with none for what is left out; undefined for what has no slices.
inline Value slice(const Value& value, const Value& start, const Value& stop, const Value& step) {
  if (value.is_undefined()) fail(value.undefined());
  if (!value.is_list() && !value.is_string())
    return Undefined{"a value of type " + type_name(value) + " cannot be sliced"};
  const List items = items_of(value);
  const auto size = std::int64_t(items.size());
  const std::int64_t by = step.is_none() ? 1 : integer_of(step, "the step of a slice");
  if (by == 0) fail("the step of a slice is 0");
  const auto bound = [&](const Value& given, std::int64_t fallback) {
    if (given.is_none()) return fallback;
    std::int64_t at = integer_of(given, "the bound of a slice");
    if (at < 0) at += size;
    return std::min(std::max(at, by < 0 ? std::int64_t(-1) : 0), by < 0 ? size - 1 : size);
  };
  const std::int64_t first = bound(start, by < 0 ? size - 1 : 0);
  const std::int64_t last = bound(stop, by < 0 ? -1 : size);
  List out;
  for (std::int64_t at = first; by < 0 ? at > last : at < last;) {
    out.push_back(items[std::size_t(at)]);
    if (by > size || by < -size) break;
    at += by;
  }
  if (value.is_list()) return out;
  std::string text;
  for (const Value& item : out) text += item.string();
  return text;
}

namespace detail {

inline Value repeated(const Value& value, std::int64_t times) {
  const std::size_t n = times < 0 ? 0 : std::size_t(times);
  const std::size_t size = value.is_list() ? value.list().size() : value.string().size();
  if (size > 0 && n > longest_value / size) fail("a multiplied string or list is too long");
  if (value.is_list()) {
    List out;
    for (std::size_t i = 0; i < n; ++i)
      out.insert(out.end(), value.list().begin(), value.list().end());
    return out;
  }
  std::string out;
  for (std::size_t i = 0; i < n; ++i) out += value.string();
  return out;
}

inline std::int64_t floor_divide(std::int64_t a, std::int64_t b) {
  if (a == std::numeric_limits<std::int64_t>::min() && b == -1) fail("a number overflows");
  return a / b - ((a % b != 0) && ((a < 0) != (b < 0)));
}

inline Value number_operation(char op, const Value& a, const Value& b) {
  if ((op == '/' || op == 'f' || op == '%') && b.real() == 0) fail("division by zero");
  if (op == '/') return a.real() / b.real();
  if (a.is_real() || b.is_real() || (op == '^' && b.integer() < 0)) {
    const double x = a.real(), y = b.real();
    if (op == '+') return x + y;
    if (op == '-') return x - y;
    if (op == '*') return x * y;
    if (op == 'f') return std::floor(x / y);
    if (op == '%') return x - y * std::floor(x / y);
    return std::pow(x, y);
  }
  const std::int64_t x = a.integer(), y = b.integer();
  std::int64_t out = 0;
  bool overflow = false;
  if (op == '+') {
    overflow = __builtin_add_overflow(x, y, &out);
  } else if (op == '-') {
    overflow = __builtin_sub_overflow(x, y, &out);
  } else if (op == '*') {
    overflow = __builtin_mul_overflow(x, y, &out);
  } else if (op == 'f') {
    out = floor_divide(x, y);
  } else if (op == '%') {
    out = y == -1 ? 0 : x - y * floor_divide(x, y);
  } else {
    out = 1;
    if (x == 0 || x == 1) return y == 0 ? std::int64_t(1) : x;
    if (x == -1) return std::int64_t(y % 2 == 0 ? 1 : -1);
    for (std::int64_t i = 0; i < y && !overflow; ++i)
      overflow = __builtin_mul_overflow(out, x, &out);
  }
  if (overflow) fail("a number overflows");
  return out;
}

}  // namespace detail

/// Python's arithmetic: + - * / %, 'f' for // and '^' for **.
inline Value arithmetic(char op, const Value& a, const Value& b) {
  if (a.is_undefined()) fail(a.undefined());
  if (b.is_undefined()) fail(b.undefined());
  if (a.is_number() && b.is_number()) return detail::number_operation(op, a, b);
  if (op == '+' && a.is_string() && b.is_string()) {
    limit_length(a.string().size() + b.string().size());
    return a.string() + b.string();
  }
  if (op == '+' && a.is_list() && b.is_list()) {
    limit_length(a.list().size() + b.list().size());
    List out = a.list();
    out.insert(out.end(), b.list().begin(), b.list().end());
    return out;
  }
  const auto repeatable = [](const Value& v) { return v.is_string() || v.is_list(); };
  const auto whole = [](const Value& v) { return v.is_integer() || v.is_boolean(); };
  if (op == '*' && repeatable(a) && whole(b)) return detail::repeated(a, b.integer());
  if (op == '*' && whole(a) && repeatable(b)) return detail::repeated(b, a.integer());
  const std::string sign = op == 'f' ? "//" : op == '^' ? "**" : std::string(1, op);
  fail("values of type " + type_name(a) + " and " + type_name(b) + " do not go with '" + sign +
       "'");
}

}  // namespace dflash::jinja
