#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <utility>

#include "dflash/text/jinja/operations.hpp"
#include "dflash/text/jinja/scope.hpp"

namespace dflash::jinja {

namespace detail {

inline Value make_range(const Arguments& a) {
  if (a.positional.empty() || a.positional.size() > 3) fail("range() takes one to three numbers");
  const auto number = [&](std::size_t i) {
    return integer_of(a.positional[i], "an argument of range()");
  };
  const bool single = a.positional.size() == 1;
  const std::int64_t first = single ? 0 : number(0), last = single ? number(0) : number(1);
  const std::int64_t step = a.positional.size() == 3 ? number(2) : 1;
  if (step == 0) fail("the step of range() is 0");
  constexpr std::size_t longest = 100'000;  // what Jinja's sandbox allows
  List out;
  for (std::int64_t i = first; step > 0 ? i < last : i > last;) {
    if (out.size() >= longest) fail("range() makes more than 100000 numbers");
    out.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return out;
}

inline Map make_map(const Arguments& a) {
  Map out;
  for (const Value& source : a.positional) {
    if (source.is_map()) {
      for (const auto& [key, value] : source.map()) out.set(key, value);
      continue;
    }
    for (const Value& pair : items_of(source)) {
      if (length_of(pair) != 2) fail("dict() of what is no list of pairs");
      out.set(string_of(at_index(pair, 0), "the key of a dict"), at_index(pair, 1));
    }
  }
  for (const auto& [key, value] : a.named) out.set(key, value);
  return out;
}

inline Value time_text(const Arguments& a) {
  const std::string& format = string_of(a.need(0, "format"), "the format of strftime_now()");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  if (localtime_r(&now, &local) == nullptr) fail("the time of day cannot be read");
  std::string text(256 + 8 * format.size(), '\0');
  text.resize(std::strftime(text.data(), text.size(), format.c_str(), &local));
  return text;
}

}  // namespace detail

/// The functions that every chat template may call.
inline std::shared_ptr<Scope> global_scope() {
  auto scope = std::make_shared<Scope>();
  scope->names = {
      {"range", Function(detail::make_range)},
      {"dict", Function([](const Arguments& a) -> Value { return detail::make_map(a); })},
      {"namespace",
       Function([](const Arguments& a) { return Value::object(detail::make_map(a)); })},
      {"raise_exception",
       Function([](const Arguments& a) -> Value { fail(text_of(a.need(0, "message"))); })},
      {"strftime_now", Function(detail::time_text)},
  };
  return scope;
}

}  // namespace dflash::jinja
