#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dflash/text/jinja/format.hpp"
#include "dflash/text/jinja/value.hpp"

namespace dflash::jinja {

namespace detail {

inline Value whole_number(std::uint64_t number) {
  const bool fits = number <= std::uint64_t(std::numeric_limits<std::int64_t>::max());
  return fits ? Value(std::int64_t(number)) : Value(double(number));
}

/// Builds a value from what nlohmann's parser reads: no second tree, fields in their order.
class ValueBuilder {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  bool null() { return add(None()); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(number_integer_t value) { return add(std::int64_t(value)); }
  bool number_unsigned(number_unsigned_t value) { return add(whole_number(value)); }
  bool number_float(number_float_t value, const string_t&) { return add(value); }
  bool string(string_t& value) { return add(std::move(value)); }
  bool binary(binary_t&) { return false; }
  bool key(string_t& name) {
    open_.back().key = std::move(name);
    return true;
  }
  bool start_object(std::size_t) { return start(false); }
  bool start_array(std::size_t) { return start(true); }
  bool end_object() {
    Value value = std::move(open_.back().map);
    open_.pop_back();
    return add(std::move(value));
  }
  bool end_array() {
    Value value = std::move(open_.back().list);
    open_.pop_back();
    return add(std::move(value));
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& error) {
    if (dynamic_cast<const nlohmann::json::parse_error*>(&error) == nullptr)
      fail("is not valid JSON: a number overflows");
    fail("is not valid JSON at character " + std::to_string(position));
  }

  Value take() { return std::move(result_); }

 private:
  struct Open {
    bool is_list;
    List list;
    Map map;
    std::string key;
  };

  bool start(bool is_list) {
    if (open_.size() >= std::size_t(deepest_value)) fail("a value is nested too deeply");
    open_.push_back({is_list, {}, {}, {}});
    return true;
  }
  bool add(Value value) {
    if (open_.empty())
      result_ = std::move(value);
    else if (open_.back().is_list)
      open_.back().list.push_back(std::move(value));
    else
      open_.back().map.append(std::move(open_.back().key), std::move(value));
    return true;
  }

  std::vector<Open> open_;
  Value result_;
};

}  // namespace detail

/// The value that JSON text stands for. Failure for what is no JSON, or nested more deeply than any
/// chat.
inline Value parse_json(std::string_view text) {
  detail::ValueBuilder builder;
  nlohmann::json::sax_parse(text, &builder);
  return builder.take();
}

/// The value of a tree of nlohmann's: `ordered_json` keeps the order of fields.
template <class Json>
Value value_of(const Json& json) {
  return parse_json(json.dump());
}

}  // namespace dflash::jinja
