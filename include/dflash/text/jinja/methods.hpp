#pragma once

#include <string>
#include <string_view>
#include <unordered_map>

#include "dflash/text/jinja/strings.hpp"

namespace dflash::jinja {

/// A method of strings, lists or maps: self and the call's arguments.
using Method = Value (*)(const Value& self, const Arguments& arguments);
using Methods = std::unordered_map<std::string_view, Method>;

namespace detail {

template <bool left, bool right>
Value strip_method(const Value& self, const Arguments& a) {
  return strip(self.string(), a.get(0, "chars", None()), left, right);
}

template <bool at_start>
Value affix_method(const Value& self, const Arguments& a) {
  const Value& affix = a.need(0, "prefix");
  const auto text =
      searched_part(self.string(), a.get(1, "start", None()), a.get(2, "end", None()));
  for (const Value& one : affix.is_list() ? affix.list() : List{affix}) {
    const std::string& part =
        string_of(one, at_start ? "the argument of startswith" : "the argument of endswith");
    if (text && (at_start ? text->starts_with(part) : text->ends_with(part))) return true;
  }
  return false;
}

template <bool from_right>
Value split_method(const Value& self, const Arguments& a) {
  return split(self.string(), a.get(0, "sep", None()),
               integer_of(a.get(1, "maxsplit", -1), "maxsplit"), from_right);
}

template <bool from_right, bool must_exist>
Value search_method(const Value& self, const Arguments& a) {
  const std::string& part = string_of(a.need(0, "sub"), "the argument of find");
  const std::string& all = self.string();
  const auto text = searched_part(all, a.get(1, "start", None()), a.get(2, "end", None()));
  const std::size_t at = !text        ? std::string::npos
                         : from_right ? text->rfind(part)
                                      : text->find(part);
  if (at != std::string::npos)
    return character_index(all, std::size_t(text->data() - all.data()) + at);
  if (must_exist) fail("the text that index() looks for is not there");
  return -1;
}

template <bool from_right>
Value partition_method(const Value& self, const Arguments& a) {
  const std::string& text = self.string();
  const std::string& by = string_of(a.need(0, "sep"), "the separator of partition");
  if (by.empty()) fail("the separator of partition is empty");
  const std::size_t at = from_right ? text.rfind(by) : text.find(by);
  if (at == std::string::npos)
    return Value::tuple(from_right ? List{"", "", text} : List{text, "", ""});
  return Value::tuple({text.substr(0, at), by, text.substr(at + by.size())});
}

template <bool (*test)(char32_t)>
Value every_character(const Value& self, const Arguments&) {
  for (const char32_t c : to_utf32(self.string()))
    if (!test(c)) return false;
  return !self.string().empty();
}

inline bool is_letter_or_digit(char32_t c) { return is_letter(c) || is_decimal_digit(c); }

template <char32_t (*other)(char32_t), char32_t (*same)(char32_t)>
Value is_case(const Value& self, const Arguments&) {
  bool cased = false;
  for (const char32_t c : to_utf32(self.string())) {
    if (same(c) != c) return false;
    cased = cased || other(c) != c;
  }
  return cased;
}

template <int side>  // -1: text left, 0: middle, 1: text right
Value justify_method(const Value& self, const Arguments& a) {
  const auto width = integer_of(a.need(0, "width"), "the width");
  const Value fill = a.get(1, "fillchar", " ");
  const std::string& character = string_of(fill, "the fill character");
  if (character_index(character, character.size()) != 1)
    fail("the fill character is not one character");
  const auto missing = width - std::int64_t(length_of(self));
  if (missing <= 0) return self;
  if (std::size_t(missing) > longest_value) fail("a width is too large");
  const auto left = side < 0 ? 0 : side > 0 ? missing : missing / 2 + (missing & width & 1);
  return repeated(fill, left).string() + self.string() + repeated(fill, missing - left).string();
}

}  // namespace detail

inline const Methods& string_methods() {
  using namespace detail;
  static const Methods methods = {
      {"strip", strip_method<true, true>},
      {"lstrip", strip_method<true, false>},
      {"rstrip", strip_method<false, true>},
      {"startswith", affix_method<true>},
      {"endswith", affix_method<false>},
      {"split", split_method<false>},
      {"rsplit", split_method<true>},
      {"find", search_method<false, false>},
      {"rfind", search_method<true, false>},
      {"index", search_method<false, true>},
      {"rindex", search_method<true, true>},
      {"partition", partition_method<false>},
      {"rpartition", partition_method<true>},
      {"ljust", justify_method<-1>},
      {"center", justify_method<0>},
      {"rjust", justify_method<1>},
      {"isspace", every_character<is_space>},
      {"isalpha", every_character<is_letter>},
      {"isdigit", every_character<is_decimal_digit>},
      {"isnumeric", every_character<is_decimal_digit>},
      {"isalnum", every_character<is_letter_or_digit>},
      {"isupper", is_case<lower_case, upper_case>},
      {"islower", is_case<upper_case, lower_case>},
      {"lower", [](const Value& self, const Arguments&) -> Value { return lower(self.string()); }},
      {"casefold",
       [](const Value& self, const Arguments&) -> Value { return lower(self.string()); }},
      {"upper", [](const Value& self, const Arguments&) -> Value { return upper(self.string()); }},
      {"title", [](const Value& self, const Arguments&) -> Value { return titled(self.string()); }},
      {"capitalize",
       [](const Value& self, const Arguments&) -> Value { return capitalized(self.string()); }},
      {"replace",
       [](const Value& self, const Arguments& a) -> Value {
         return replaced(self.string(), string_of(a.need(0, "old"), "the argument of replace"),
                         string_of(a.need(1, "new"), "the argument of replace"),
                         integer_of(a.get(2, "count", -1), "the count"));
       }},
      {"count",
       [](const Value& self, const Arguments& a) -> Value {
         const std::string& part = string_of(a.need(0, "sub"), "the argument of count");
         const auto text =
             searched_part(self.string(), a.get(1, "start", None()), a.get(2, "end", None()));
         return text ? count_of(*text, part) : 0;
       }},
      {"splitlines",
       [](const Value& self, const Arguments& a) -> Value {
         return split_lines(self.string(), truth(a.get(0, "keepends", false)));
       }},
      {"removeprefix",
       [](const Value& self, const Arguments& a) -> Value {
         const std::string& part = string_of(a.need(0, "prefix"), "the prefix");
         return self.string().starts_with(part) ? self.string().substr(part.size()) : self.string();
       }},
      {"removesuffix",
       [](const Value& self, const Arguments& a) -> Value {
         const std::string& part = string_of(a.need(0, "suffix"), "the suffix");
         return self.string().ends_with(part)
                    ? self.string().substr(0, self.string().size() - part.size())
                    : self.string();
       }},
      {"join",
       [](const Value& self, const Arguments& a) -> Value {
         std::string out;
         bool first = true;
         for (const Value& item : items_of(a.need(0, "iterable"))) {
           if (!std::exchange(first, false)) out += self.string();
           out += string_of(item, "an item of join");
           limit_length(out.size());
         }
         return out;
       }},
      {"zfill",
       [](const Value& self, const Arguments& a) -> Value {
         Arguments padding{{a.need(0, "width"), "0"}, {}};
         const std::string& text = self.string();
         if (!text.starts_with('-') && !text.starts_with('+'))
           return justify_method<1>(self, padding);
         padding.positional[0] = integer_of(padding.positional[0], "the width") - 1;
         return text.substr(0, 1) + justify_method<1>(Value(text.substr(1)), padding).string();
       }},
  };
  return methods;
}

inline const Methods& map_methods() {
  static const Methods methods = {
      {"get",
       [](const Value& self, const Arguments& a) {
         const Value& key = a.need(0, "key");
         const Value* found = key.is_string() ? self.map().find(key.string()) : nullptr;
         return found != nullptr ? *found : a.get(1, "default", None());
       }},
      {"keys", [](const Value& self, const Arguments&) -> Value { return items_of(self); }},
      {"values",
       [](const Value& self, const Arguments&) -> Value {
         List out;
         for (const auto& [key, value] : self.map()) out.push_back(value);
         return out;
       }},
      {"items",
       [](const Value& self, const Arguments&) -> Value {
         List out;
         for (const auto& [key, value] : self.map()) out.push_back(Value::tuple({key, value}));
         return out;
       }},
      {"copy", [](const Value& self, const Arguments&) { return self; }},
  };
  return methods;
}

inline const Methods& list_methods() {
  static const Methods methods = {
      {"count",
       [](const Value& self, const Arguments& a) -> Value {
         std::int64_t n = 0;
         for (const Value& item : self.list()) n += equal(item, a.need(0, "value"));
         return n;
       }},
      {"index",
       [](const Value& self, const Arguments& a) -> Value {
         const auto size = std::int64_t(self.list().size());
         const std::int64_t first = search_bound(a.get(1, "start", None()), size, 0),
                            last = search_bound(a.get(2, "stop", None()), size, size);
         for (std::int64_t i = first; i < std::min(last, size); ++i)
           if (equal(self.list()[std::size_t(i)], a.need(0, "value"))) return i;
         fail("the value that index() looks for is not there");
       }},
      {"copy", [](const Value& self, const Arguments&) { return self; }},
  };
  return methods;
}

/// The method of a value, or nullptr.
inline Method find_method(const Value& value, std::string_view name) {
  const Methods* methods = value.is_string() ? &string_methods()
                           : value.is_map()  ? &map_methods()
                           : value.is_list() ? &list_methods()
                                             : nullptr;
  if (methods == nullptr) return nullptr;
  const auto found = methods->find(name);
  return found == methods->end() ? nullptr : found->second;
}

/// value.name: a method, else what a map or object has under that name, else undefined.
inline Value attribute(const Value& value, const std::string& name) {
  if (value.is_undefined()) fail(value.undefined());
  if (const Method method = find_method(value, name))
    return Function(
        [value, method](const Arguments& arguments) { return method(value, arguments); });
  const Value* found = value.is_map()      ? value.map().find(name)
                       : value.is_object() ? value.object().find(name)
                                           : nullptr;
  if (found != nullptr) return *found;
  return Undefined{"a value of type " + type_name(value) + " has no attribute '" + name + "'"};
}

/// value[key]: an item of a list, string or map, else an attribute, else undefined.
inline Value item(const Value& value, const Value& key) {
  if (value.is_undefined()) fail(value.undefined());
  if (key.is_undefined()) fail(key.undefined());
  if ((value.is_list() || value.is_string()) && (key.is_integer() || key.is_boolean()))
    return at_index(value, key.integer());
  if (key.is_string()) {
    if (value.is_map())
      if (const Value* found = value.map().find(key.string())) return *found;
    return attribute(value, key.string());
  }
  return Undefined{"a value of type " + type_name(value) + " has no item " + repr(key)};
}

}  // namespace dflash::jinja
