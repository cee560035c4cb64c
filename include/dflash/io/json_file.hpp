#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/io/atomic_file.hpp"
#include "dflash/io/in_quotes.hpp"
#include "dflash/io/mapped_file.hpp"

namespace dflash {

/// No JSON of ours lies deeper; keeps a hostile file from exhausting the stack.
inline constexpr int deepest_json = 200;

/// A JSON file. Error naming the file, line and column of what is no JSON, or naming the file where
/// it nests too deeply.
inline nlohmann::json read_json(const std::filesystem::path& path) {
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.data()), std::size_t(file.size()));
  try {
    return nlohmann::json::parse(
        text, [&](int depth, nlohmann::json::parse_event_t, const nlohmann::json&) {
          if (depth > deepest_json) throw Error(path.string() + " nests too deeply");
          return true;
        });
  } catch (const nlohmann::json::exception& error) {
    const auto* parse_error = dynamic_cast<const nlohmann::json::parse_error*>(&error);
    if (parse_error == nullptr)
      throw Error(path.string() + " is not valid JSON: a number overflows");
    const std::size_t at = parse_error->byte > 0 ? parse_error->byte - 1 : 0;
    const std::string_view before = text.substr(0, at);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 = 0
    throw Error(path.string() + ":" + std::to_string(line) + ":" +
                std::to_string(at - line_start + 1) + " is not valid JSON" +
                (at >= text.size() ? ": the file ends early" : ""));
  }
}

/// JSON as text, in one line or indented; bytes that are no UTF-8 are replaced.
template <class Json>
std::string text_of(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

/// Replaces a JSON file at once, indented for people.
inline void write_json(const std::filesystem::path& path, const nlohmann::json& json) {
  write_file(path, text_of(json, 2) + "\n");
}

namespace detail {

template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;

template <class T>
std::string json_name_of() {
  if constexpr (std::is_same_v<T, bool>)
    return "true or false";
  else if constexpr (std::is_integral_v<T>)
    return "a whole number";
  else if constexpr (std::is_floating_point_v<T>)
    return "a number";
  else if constexpr (std::is_same_v<T, std::string>)
    return "a string";
  else if constexpr (std::is_same_v<T, nlohmann::json>)
    return "a value";
  else {
    static_assert(is_vector<T>, "fields of this type cannot be read from JSON");
    std::string name = "a list, each entry ";
    return name += json_name_of<typename T::value_type>();
  }
}

/// False if the value is no T, or an integer out of T's range.
template <class T>
bool read_value(const nlohmann::json& json, T& value) {
  if constexpr (std::is_same_v<T, nlohmann::json>) {
    value = json;
    return true;
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!json.is_boolean()) return false;
    value = json.get<bool>();
    return true;
  } else if constexpr (std::is_integral_v<T>) {
    if (json.is_number_unsigned()) {
      value = T(json.get<std::uint64_t>());
      return std::in_range<T>(json.get<std::uint64_t>());
    }
    if (!json.is_number_integer()) return false;
    value = T(json.get<std::int64_t>());
    return std::in_range<T>(json.get<std::int64_t>());
  } else if constexpr (std::is_floating_point_v<T>) {
    if (!json.is_number()) return false;
    value = T(json.get<double>());
    return true;
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!json.is_string()) return false;
    value = json.get<std::string>();
    return true;
  } else {
    if (!json.is_array()) return false;
    value.resize(json.size());
    for (std::size_t i = 0; i < json.size(); ++i)
      if (!read_value(json[i], value[i])) return false;
    return true;
  }
}

}  // namespace detail

/// The field of an object, or nullptr where it is absent or null. Dots lead into inner objects:
/// "dflash_config.mask_token_id".
inline const nlohmann::json* find_field(const nlohmann::json& object, std::string_view field) {
  const nlohmann::json* place = &object;
  while (true) {
    const std::size_t dot = field.find('.');
    if (!place->is_object()) return nullptr;
    const auto found = place->find(std::string(field.substr(0, dot)));
    if (found == place->end() || found->is_null()) return nullptr;
    place = &*found;
    if (dot == std::string_view::npos) return place;
    field.remove_prefix(dot + 1);
  }
}

/// A value that is a T: bool, integer, floating point, string, json or a vector of those.
/// Error naming the file, the field and the value where it is another type.
template <class T>
T typed(const nlohmann::json& json, std::string_view field, const std::filesystem::path& path) {
  T value{};
  if (!detail::read_value(json, value)) {
    std::string found = text_of(json);
    if (found.size() > 120) found = found.substr(0, 120) + "...";
    throw Error(path.string() + ": field " + in_quotes(field) + " is " + found + " where " +
                detail::json_name_of<T>() + " is expected");
  }
  return value;
}

/// A field that must be there. Error naming the file and the field.
template <class T>
T required(const nlohmann::json& object, std::string_view field,
           const std::filesystem::path& path) {
  const nlohmann::json* found = find_field(object, field);
  if (found == nullptr) throw Error(path.string() + " has no field " + in_quotes(field));
  return typed<T>(*found, field, path);
}

/// A field that may be absent or null; `fallback` then. Error if it is of another type.
template <class T>
T optional(const nlohmann::json& object, std::string_view field, const std::filesystem::path& path,
           T fallback = {}) {
  const nlohmann::json* found = find_field(object, field);
  return found == nullptr ? fallback : typed<T>(*found, field, path);
}

}  // namespace dflash
