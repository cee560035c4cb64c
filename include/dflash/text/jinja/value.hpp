#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
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
struct None {};

/// What a template computes with: Python's values as far as chat templates go. Copies share.
class Value {
 public:
  Value() = default;
  Value(None) {}
  Value(Undefined u) : Value(Kind::undefined, std::make_shared<const Undefined>(std::move(u))) {}
  Value(bool b) : kind_(Kind::boolean), whole_(b) {}
  Value(int i) : Value(std::int64_t(i)) {}
  Value(std::int64_t i) : kind_(Kind::integer), whole_(i) {}
  Value(std::size_t i) : Value(std::int64_t(i)) {}
  Value(double x) : kind_(Kind::real), real_(x) {}
  Value(std::string s) : Value(Kind::string, std::make_shared<const std::string>(std::move(s))) {}
  Value(std::string_view s) : Value(std::string(s)) {}
  Value(const char* s) : Value(std::string(s)) {}
  Value(List l);
  Value(Map m);
  Value(Function f);
  /// A list that `%` takes as several values.
  static Value tuple(List items);
  /// An object with attributes that templates may set, such as a namespace.
  static Value object(Map attributes);

  bool is_undefined() const { return kind_ == Kind::undefined; }
  bool is_none() const { return kind_ == Kind::none; }
  bool is_boolean() const { return kind_ == Kind::boolean; }
  bool is_integer() const { return kind_ == Kind::integer; }
  bool is_real() const { return kind_ == Kind::real; }
  bool is_number() const { return is_boolean() || is_integer() || is_real(); }
  bool is_string() const { return kind_ == Kind::string; }
  bool is_list() const { return kind_ == Kind::list; }
  bool is_tuple() const { return is_list() && whole_ != 0; }
  bool is_map() const { return kind_ == Kind::map; }
  bool is_object() const { return kind_ == Kind::object; }
  bool is_function() const { return kind_ == Kind::function; }

  // Each only where the matching is_... says so.
  const std::string& undefined() const { return as<Undefined>().what; }
  bool boolean() const { return whole_ != 0; }
  std::int64_t integer() const { return whole_; }                     // also of a boolean
  double real() const { return is_real() ? real_ : double(whole_); }  // of any number
  const std::string& string() const { return as<std::string>(); }
  const List& list() const { return as<List>(); }
  const Map& map() const { return as<Map>(); }
  Map& object() const { return const_cast<Map&>(as<Map>()); }
  const Function& function() const { return as<Function>(); }

  /// The very same object, as Python's `is`.
  bool same(const Value& o) const {
    return kind_ == o.kind_ && shared_ == o.shared_ &&
           (is_real() ? real_ == o.real_ : whole_ == o.whole_);
  }

 private:
  enum class Kind { none, undefined, boolean, integer, real, string, list, map, object, function };

  Value(Kind kind, std::shared_ptr<const void> shared) : kind_(kind), shared_(std::move(shared)) {}
  template <class T>
  const T& as() const {
    return *static_cast<const T*>(shared_.get());
  }

  Kind kind_ = Kind::none;
  union {
    std::int64_t whole_ = 0;
    double real_;
  };
  std::shared_ptr<const void> shared_;  // what is neither none nor a number; of type kind_
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

namespace detail {

/// What is to be freed, and how.
struct Freed {
  const void* what;
  void (*free)(const void*);
};
inline thread_local std::vector<Freed>* to_be_freed = nullptr;

/// Frees what a value holds, and the values in it one after another: they may be nested more deeply
/// than the stack is.
template <class T>
void free_in_turn(T* what) {
  const Freed freed{what, [](const void* contents) { delete static_cast<const T*>(contents); }};
  if (to_be_freed != nullptr) {
    to_be_freed->push_back(freed);
    return;
  }
  std::vector<Freed> all{freed};
  to_be_freed = &all;
  while (!all.empty()) {
    const Freed next = all.back();
    all.pop_back();
    next.free(next.what);
  }
  to_be_freed = nullptr;
}

template <class T>
std::shared_ptr<T> freed_in_turn(T contents) {
  return {new T(std::move(contents)), free_in_turn<T>};
}

}  // namespace detail

inline Value::Value(List l) : Value(Kind::list, detail::freed_in_turn(std::move(l))) {}
inline Value::Value(Map m) : Value(Kind::map, detail::freed_in_turn(std::move(m))) {}
inline Value::Value(Function f) : Value(Kind::function, detail::freed_in_turn(std::move(f))) {}
inline Value Value::object(Map attributes) {
  return {Kind::object, detail::freed_in_turn(std::move(attributes))};
}
inline Value Value::tuple(List items) {
  Value value(std::move(items));
  value.whole_ = 1;
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
