#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "dflash/text/jinja/format.hpp"
#include "dflash/text/jinja/value.hpp"

namespace dflash::jinja {

/// JSON as a value of templates; objects keep the order of their fields. Failure if it is nested
/// more deeply than any chat.
inline Value value_of(const nlohmann::ordered_json& json, int depth = 0) {
  if (depth > deepest_value) fail("a value is nested too deeply");
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned()) {
    const auto number = json.get<std::uint64_t>();
    if (number > std::uint64_t(std::numeric_limits<std::int64_t>::max())) return double(number);
    return std::int64_t(number);
  }
  if (json.is_number_integer()) return json.get<std::int64_t>();
  if (json.is_number_float()) return json.get<double>();
  if (json.is_string()) return json.get_ref<const std::string&>();
  if (json.is_array()) {
    List list;
    for (const auto& item : json) list.push_back(value_of(item, depth + 1));
    return list;
  }
  if (json.is_object()) {
    Map map;
    for (const auto& [key, item] : json.items()) map.append(key, value_of(item, depth + 1));
    return map;
  }
  return None();
}

}  // namespace dflash::jinja
