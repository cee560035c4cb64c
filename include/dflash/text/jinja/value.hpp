#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace dflash::jinja {

/// What went wrong in a template, before the line is known.
struct Failure {
  std::string what;
};

[[noreturn]] inline void fail(std::string what) { throw Failure{std::move(what)}; }

class Value;
class Map;
struct Arguments;
using List = std::vector<Value>;
using Function = std::function<Value(const Arguments&)>;

/// A name or attribute that is not there; using it is an error, printing it prints nothing.
struct Undefined {
  std::string what;  // the error's text
};
struct None {
  bool operator==(const None&) const = default;
};

/// What a template computes with: Python's values as far as chat templates go. Copies share.
class Value {
 public:
  Value() : data_(None()) {}
  Value(None) : data_(None()) {}
  Value(Undefined u) : data_(std::make_shared<const Undefined>(std::move(u))) {}
  Value(bool b) : data_(b) {}
  Value(int i) : data_(std::int64_t(i)) {}
  Value(std::int64_t i) : data_(i) {}
  Value(std::size_t i) : data_(std::int64_t(i)) {}
  Value(double x) : data_(x) {}
  Value(std::string s) : data_(std::make_shared<const std::string>(std::move(s))) {}
  Value(std::string_view s) : Value(std::string(s)) {}
  Value(const char* s) : Value(std::string(s)) {}
  Value(List l) : data_(std::make_shared<const List>(std::move(l))) {}
  Value(Map m);
  Value(Function f) : data_(std::make_shared<const Function>(std::move(f))) {}
  /// An object with attributes that templates may set, such as a namespace.
  static Value object(Map attributes);

  bool is_undefined() const { return holds<std::shared_ptr<const Undefined>>(); }
  bool is_none() const { return holds<None>(); }
  bool is_boolean() const { return holds<bool>(); }
  bool is_integer() const { return holds<std::int64_t>(); }
  bool is_real() const { return holds<double>(); }
  bool is_number() const { return is_boolean() || is_integer() || is_real(); }
  bool is_string() const { return holds<std::shared_ptr<const std::string>>(); }
  bool is_list() const { return holds<std::shared_ptr<const List>>(); }
  bool is_map() const { return holds<std::shared_ptr<const Map>>(); }
  bool is_object() const { return holds<std::shared_ptr<Map>>(); }
  bool is_function() const { return holds<std::shared_ptr<const Function>>(); }

  // Each only where the matching is_... says so.
  const std::string& undefined() const {
    return std::get<std::shared_ptr<const Undefined>>(data_)->what;
  }
  bool boolean() const { return std::get<bool>(data_); }
  std::int64_t integer() const {
    return is_boolean() ? std::int64_t(boolean()) : std::get<std::int64_t>(data_);
  }
  double real() const { return is_real() ? std::get<double>(data_) : double(integer()); }
  const std::string& string() const { return *std::get<std::shared_ptr<const std::string>>(data_); }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(data_); }
  const Map& map() const { return *std::get<std::shared_ptr<const Map>>(data_); }
  Map& object() const { return *std::get<std::shared_ptr<Map>>(data_); }
  const Function& function() const { return *std::get<std::shared_ptr<const Function>>(data_); }

  /// The very same object, as Python's `is`.
  bool same(const Value& o) const { return data_ == o.data_; }

 private:
  template <class T>
  bool holds() const {
    return std::holds_alternative<T>(data_);
  }

  std::variant<None, std::shared_ptr<const Undefined>, bool, std::int64_t, double,
               std::shared_ptr<const std::string>, std::shared_ptr<const List>,
               std::shared_ptr<const Map>, std::shared_ptr<Map>, std::shared_ptr<const Function>>
      data_;
};

/// Names and values in the order in which they came.
class Map {
 public:
  using Entry = std::pair<std::string, Value>;

  Map() = default;
  Map(std::initializer_list<Entry> entries) : entries_(entries) {}

  const Value* find(std::string_view key) const {
    for (const Entry& entry : entries_)
      if (entry.first == key) return &entry.second;
    return nullptr;
  }
  void set(std::string_view key, Value value) {
    for (Entry& entry : entries_)
      if (entry.first == key) {
        entry.second = std::move(value);
        return;
      }
    entries_.emplace_back(key, std::move(value));
  }
  /// For a key that is known to be new.
  void append(std::string key, Value value) {
    entries_.emplace_back(std::move(key), std::move(value));
  }
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  std::size_t size() const { return entries_.size(); }
  bool empty() const { return entries_.empty(); }
  auto begin() const { return entries_.begin(); }
  auto end() const { return entries_.end(); }

 private:
  std::vector<Entry> entries_;
};

inline Value::Value(Map m) : data_(std::make_shared<const Map>(std::move(m))) {}
inline Value Value::object(Map attributes) {
  Value value;
  value.data_ = std::make_shared<Map>(std::move(attributes));
  return value;
}

/// What a function, filter or test is called with.
struct Arguments {
  std::vector<Value> positional;
  std::vector<Map::Entry> named;

  /// The argument at a position or of a name, or nullptr.
  const Value* find(std::size_t position, std::string_view name) const {
    if (position < positional.size()) return &positional[position];
    for (const auto& [key, value] : named)
      if (key == name) return &value;
    return nullptr;
  }
  Value get(std::size_t position, std::string_view name, Value fallback) const {
    const Value* found = find(position, name);
    return found != nullptr ? *found : std::move(fallback);
  }
  /// Failure if the argument is missing.
  const Value& need(std::size_t position, std::string_view name) const {
    const Value* found = find(position, name);
    if (found == nullptr) fail("the argument '" + std::string(name) + "' is missing");
    return *found;
  }
};

/// The type's name in Python, for messages.
inline std::string type_name(const Value& value) {
  if (value.is_undefined()) return "undefined";
  if (value.is_none()) return "none";
  if (value.is_boolean()) return "bool";
  if (value.is_integer()) return "int";
  if (value.is_real()) return "float";
  if (value.is_string()) return "str";
  if (value.is_list()) return "list";
  if (value.is_map()) return "dict";
  return value.is_object() ? "namespace" : "function";
}

inline const std::string& string_of(const Value& value, const char* what) {
  if (value.is_undefined()) fail(value.undefined());
  if (!value.is_string())
    fail(std::string(what) + " is of type " + type_name(value) + " where a string is expected");
  return value.string();
}

inline std::int64_t integer_of(const Value& value, const char* what) {
  if (value.is_undefined()) fail(value.undefined());
  if (!value.is_integer() && !value.is_boolean())
    fail(std::string(what) + " is of type " + type_name(value) + " where an integer is expected");
  return value.integer();
}

/// Whether `if value` holds.
inline bool truth(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_real()) return value.real() != 0;
  if (value.is_boolean() || value.is_integer()) return value.integer() != 0;
  if (value.is_string()) return !value.string().empty();
  if (value.is_list()) return !value.list().empty();
  if (value.is_map()) return !value.map().empty();
  return true;
}

}  // namespace dflash::jinja
