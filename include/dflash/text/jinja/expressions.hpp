#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dflash/text/jinja/filters.hpp"
#include "dflash/text/jinja/methods.hpp"
#include "dflash/text/jinja/scope.hpp"

namespace dflash::jinja {

/// A part of a template that has a value.
class Expression {
 public:
  explicit Expression(int line) : line_(line) {}
  virtual ~Expression() = default;

  Value value(Frame& frame) const {
    const Deeper deeper(frame.rendering);
    frame.rendering.step();
    frame.rendering.line = line_;
    return evaluate(frame);
  }
  int line() const { return line_; }

 protected:
  virtual Value evaluate(Frame& frame) const = 0;

 private:
  int line_;
};

using ExpressionPointer = std::unique_ptr<const Expression>;

/// The arguments as they stand in a call.
struct CallArguments {
  std::vector<ExpressionPointer> positional;
  std::vector<std::pair<std::string, ExpressionPointer>> named;
  ExpressionPointer list, map;  // of *list and **map, or null

  Arguments evaluate(Frame& frame) const {
    Arguments out;
    for (const auto& argument : positional) out.positional.push_back(argument->value(frame));
    for (const auto& [name, argument] : named) out.named.emplace_back(name, argument->value(frame));
    if (list)
      for (const Value& more : items_of(list->value(frame))) out.positional.push_back(more);
    if (map) {
      const Value more = map->value(frame);
      if (!more.is_map()) fail("** goes before a dict, not a value of type " + type_name(more));
      for (const auto& [name, argument] : more.map()) out.named.emplace_back(name, argument);
    }
    return out;
  }
};

struct Constant : Expression {
  Constant(int line, Value v) : Expression(line), constant(std::move(v)) {}
  Value evaluate(Frame&) const override { return constant; }
  Value constant;
};

struct Name : Expression {
  Name(int line, std::string n) : Expression(line), name(std::move(n)) {}
  Value evaluate(Frame& frame) const override {
    const Value* found = frame.scope->find(name);
    return found != nullptr ? *found : Undefined{"'" + name + "' is undefined"};
  }
  std::string name;
};

struct ListLiteral : Expression {
  ListLiteral(int line, std::vector<ExpressionPointer> i, bool t = false)
      : Expression(line), items(std::move(i)), is_tuple(t) {}
  Value evaluate(Frame& frame) const override {
    List out;
    for (const auto& one : items) out.push_back(one->value(frame));
    return is_tuple ? Value::tuple(std::move(out)) : Value(std::move(out));
  }
  std::vector<ExpressionPointer> items;
  bool is_tuple;
};

struct MapLiteral : Expression {
  using Entries = std::vector<std::pair<ExpressionPointer, ExpressionPointer>>;
  MapLiteral(int line, Entries e) : Expression(line), entries(std::move(e)) {}
  Value evaluate(Frame& frame) const override {
    Map out;
    for (const auto& [key, entry] : entries) {
      const Value name = key->value(frame);
      out.set(string_of(name, "the key of a dict"), entry->value(frame));
    }
    return out;
  }
  Entries entries;
};

struct Attribute : Expression {
  Attribute(int line, ExpressionPointer o, std::string n)
      : Expression(line), object(std::move(o)), name(std::move(n)) {}
  Value evaluate(Frame& frame) const override { return attribute(object->value(frame), name); }
  ExpressionPointer object;
  std::string name;
};

struct Item : Expression {
  Item(int line, ExpressionPointer o, ExpressionPointer k)
      : Expression(line), object(std::move(o)), key(std::move(k)) {}
  Value evaluate(Frame& frame) const override {
    const Value whole = object->value(frame);
    return item(whole, key->value(frame));
  }
  ExpressionPointer object, key;
};

struct Slice : Expression {
  Slice(int line, ExpressionPointer o, ExpressionPointer (&&b)[3])
      : Expression(line),
        object(std::move(o)),
        bounds{std::move(b[0]), std::move(b[1]), std::move(b[2])} {}
  Value evaluate(Frame& frame) const override {
    const Value whole = object->value(frame);
    Value at[3];
    for (int i = 0; i < 3; ++i)
      if (bounds[i]) at[i] = bounds[i]->value(frame);
    return slice(whole, at[0], at[1], at[2]);
  }
  ExpressionPointer object, bounds[3];  // start, stop, step: null where left out
};

struct Call : Expression {
  Call(int line, ExpressionPointer f, CallArguments a)
      : Expression(line), function(std::move(f)), arguments(std::move(a)) {}
  Value evaluate(Frame& frame) const override { return call(frame, arguments.evaluate(frame)); }
  Value call(Frame& frame, const Arguments& given) const {
    Value called = function->value(frame);
    if (called.is_object())
      if (const Value* method = called.object().find("__call__")) called = Value(*method);
    if (called.is_undefined()) fail(called.undefined());
    if (!called.is_function()) fail("a value of type " + type_name(called) + " cannot be called");
    return called.function()(given);
  }
  ExpressionPointer function;
  CallArguments arguments;
};

struct FilterCall : Expression {
  FilterCall(int line, ExpressionPointer i, std::string n, CallArguments a)
      : Expression(line), input(std::move(i)), name(std::move(n)), arguments(std::move(a)) {}
  Value evaluate(Frame& frame) const override { return apply(input->value(frame), frame); }
  Value apply(const Value& value, Frame& frame) const {
    return find_filter(name)(value, arguments.evaluate(frame));
  }
  ExpressionPointer input;  // null where a block is filtered
  std::string name;
  CallArguments arguments;
};

struct TestCall : Expression {
  TestCall(int line, ExpressionPointer i, std::string t, CallArguments a, bool n)
      : Expression(line),
        input(std::move(i)),
        name(std::move(t)),
        arguments(std::move(a)),
        negated(n) {}
  Value evaluate(Frame& frame) const override {
    const Value tested = input->value(frame);
    return find_test(name)(tested, arguments.evaluate(frame)) != negated;
  }
  ExpressionPointer input;
  std::string name;
  CallArguments arguments;
  bool negated;
};

struct Unary : Expression {
  Unary(int line, char s, ExpressionPointer o) : Expression(line), sign(s), operand(std::move(o)) {}
  Value evaluate(Frame& frame) const override {
    const Value v = operand->value(frame);
    if (sign == '!') return !truth(v);
    if (sign == '-' && v.is_real()) return -v.real();  // 0 - 0.0 would lose the sign
    return arithmetic(sign, 0, v);
  }
  char sign;  // + - or ! for not
  ExpressionPointer operand;
};

struct Binary : Expression {
  Binary(int line, char s, ExpressionPointer l, ExpressionPointer r)
      : Expression(line), sign(s), left(std::move(l)), right(std::move(r)) {}
  Value evaluate(Frame& frame) const override {
    Value a = left->value(frame);
    if (sign == '&') return truth(a) ? right->value(frame) : a;
    if (sign == '|') return truth(a) ? a : right->value(frame);
    const Value b = right->value(frame);
    if (sign == '~') return arithmetic('+', text_of(a), text_of(b));
    if (sign == '%' && a.is_string()) return percent_format(a.string(), b);
    return arithmetic(sign, a, b);
  }
  char sign;  // as `arithmetic` has it, or & for and, | for or, ~
  ExpressionPointer left, right;
};

/// a < b <= c ...: each with its neighbour.
struct Comparison : Expression {
  using Others = std::vector<std::pair<std::string, ExpressionPointer>>;
  Comparison(int line, ExpressionPointer f, Others o)
      : Expression(line), first(std::move(f)), others(std::move(o)) {}
  Value evaluate(Frame& frame) const override {
    Value a = first->value(frame);
    for (const auto& [sign, other] : others) {
      Value b = other->value(frame);
      if (!compare(a, sign, b)) return false;
      a = std::move(b);
    }
    return true;
  }
  static bool compare(const Value& a, const std::string& sign, const Value& b) {
    if (sign == "==") return equal(a, b);
    if (sign == "!=") return !equal(a, b);
    if (sign == "in") return contains(b, a);
    if (sign == "not in") return !contains(b, a);
    if (sign == "<") return less(a, b);
    if (sign == ">") return less(b, a);
    if (sign == "<=") return less(a, b) || equal(a, b);
    return less(b, a) || equal(a, b);
  }
  ExpressionPointer first;
  Others others;
};

struct Conditional : Expression {
  Conditional(int line, ExpressionPointer c, ExpressionPointer y, ExpressionPointer n)
      : Expression(line), condition(std::move(c)), yes(std::move(y)), no(std::move(n)) {}
  Value evaluate(Frame& frame) const override {
    if (truth(condition->value(frame))) return yes->value(frame);
    if (no) return no->value(frame);
    return Undefined{"an 'if' without 'else' was false"};
  }
  ExpressionPointer condition, yes, no;  // no: may be null
};

}  // namespace dflash::jinja
