#pragma once

#include <string_view>
#include <unordered_map>

#include "dflash/text/jinja/methods.hpp"

namespace dflash::jinja {

using Test = bool (*)(const Value& value, const Arguments& arguments);

namespace detail {

template <int wanted_remainder>
bool parity(const Value& value, const Arguments&) {
  return equal(arithmetic('%', value, 2), wanted_remainder);
}

template <bool (*compare)(const Value&, const Value&)>
bool comparison(const Value& value, const Arguments& a) {
  return compare(value, a.need(0, "other"));
}

inline bool test_equal(const Value& a, const Value& b) { return equal(a, b); }
inline bool test_unequal(const Value& a, const Value& b) { return !equal(a, b); }
inline bool test_less(const Value& a, const Value& b) { return less(a, b); }
inline bool test_greater(const Value& a, const Value& b) { return less(b, a); }
inline bool test_at_most(const Value& a, const Value& b) { return less(a, b) || equal(a, b); }
inline bool test_at_least(const Value& a, const Value& b) { return less(b, a) || equal(a, b); }
inline bool test_in(const Value& a, const Value& b) { return contains(b, a); }

inline bool is_iterable(const Value& v, const Arguments&) {
  return v.is_string() || v.is_list() || v.is_map() || v.is_undefined();
}

template <bool (Value::*check)() const>
bool is_kind(const Value& v, const Arguments&) {
  return (v.*check)();
}

}  // namespace detail

/// The tests behind `is`.
inline const std::unordered_map<std::string_view, Test>& tests() {
  using namespace detail;
  static const std::unordered_map<std::string_view, Test> all = {
      {"defined", [](const Value& v, const Arguments&) { return !v.is_undefined(); }},
      {"undefined", is_kind<&Value::is_undefined>},
      {"none", is_kind<&Value::is_none>},
      {"boolean", is_kind<&Value::is_boolean>},
      {"integer", is_kind<&Value::is_integer>},
      {"float", is_kind<&Value::is_real>},
      {"number", is_kind<&Value::is_number>},
      {"string", is_kind<&Value::is_string>},
      {"mapping", is_kind<&Value::is_map>},
      {"callable", is_kind<&Value::is_function>},
      {"iterable", is_iterable},
      {"sequence", is_iterable},
      {"true", [](const Value& v, const Arguments&) { return v.is_boolean() && v.boolean(); }},
      {"false", [](const Value& v, const Arguments&) { return v.is_boolean() && !v.boolean(); }},
      {"even", parity<0>},
      {"odd", parity<1>},
      {"divisibleby",
       [](const Value& v, const Arguments& a) {
         return equal(arithmetic('%', v, a.need(0, "num")), 0);
       }},
      {"eq", comparison<test_equal>},
      {"equalto", comparison<test_equal>},
      {"==", comparison<test_equal>},
      {"ne", comparison<test_unequal>},
      {"!=", comparison<test_unequal>},
      {"lt", comparison<test_less>},
      {"lessthan", comparison<test_less>},
      {"<", comparison<test_less>},
      {"gt", comparison<test_greater>},
      {"greaterthan", comparison<test_greater>},
      {">", comparison<test_greater>},
      {"le", comparison<test_at_most>},
      {"<=", comparison<test_at_most>},
      {"ge", comparison<test_at_least>},
      {">=", comparison<test_at_least>},
      {"in", comparison<test_in>},
      {"sameas", [](const Value& v, const Arguments& a) { return v.same(a.need(0, "other")); }},
      {"lower",
       [](const Value& v, const Arguments& a) {
         return truth(is_case<upper_case, lower_case>(text_of(v), a));
       }},
      {"upper",
       [](const Value& v, const Arguments& a) {
         return truth(is_case<lower_case, upper_case>(text_of(v), a));
       }},
      {"escaped", [](const Value&, const Arguments&) { return false; }},
  };
  return all;
}

/// Failure for a test that is not known.
inline Test find_test(std::string_view name) {
  const auto found = tests().find(name);
  if (found == tests().end()) fail("there is no test '" + std::string(name) + "'");
  return found->second;
}

}  // namespace dflash::jinja
