#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dflash/text/jinja/expressions.hpp"

namespace dflash::jinja {

/// What follows a statement: the next one, or the next or no further turn of the loop around it.
enum class Flow { next, continue_loop, break_loop };

/// A part of a template that does something.
class Statement {
 public:
  explicit Statement(int line) : line_(line) {}
  virtual ~Statement() = default;

  Flow run(Frame& frame) const {
    const Deeper deeper(frame.rendering);
    frame.rendering.step();
    frame.rendering.line = line_;
    return execute(frame);
  }

 protected:
  virtual Flow execute(Frame& frame) const = 0;

 private:
  int line_;
};

struct Body {
  std::vector<std::unique_ptr<const Statement>> statements;

  Flow run(Frame& frame) const {
    for (const auto& statement : statements)
      if (const Flow flow = statement->run(frame); flow != Flow::next) return flow;
    return Flow::next;
  }

  /// What the body prints.
  std::string text(Frame& frame) const {
    std::string out;
    std::string* outside = std::exchange(frame.rendering.out, &out);
    run(frame);
    frame.rendering.out = outside;
    return out;
  }
};

struct Text : Statement {
  Text(int line, std::string t) : Statement(line), text(std::move(t)) {}
  Flow execute(Frame& frame) const override {
    frame.rendering.print(text);
    return Flow::next;
  }
  std::string text;
};

struct Output : Statement {
  Output(int line, ExpressionPointer e) : Statement(line), expression(std::move(e)) {}
  Flow execute(Frame& frame) const override {
    frame.rendering.print(text_of(expression->value(frame)));
    return Flow::next;
  }
  ExpressionPointer expression;
};

struct If : Statement {
  using Statement::Statement;
  Flow execute(Frame& frame) const override {
    for (const auto& [condition, body] : branches)
      if (truth(condition->value(frame))) return body.run(frame);
    return otherwise.run(frame);
  }
  std::vector<std::pair<ExpressionPointer, Body>> branches;
  Body otherwise;
};

/// Where an assignment or a loop puts a value: a name, several, or an attribute of a namespace.
struct Target {
  std::vector<std::string> names;
  std::string attribute;  // not empty: names[0].attribute

  void assign(Value value, Frame& frame) const {
    if (!attribute.empty()) {
      const Value* object = frame.scope->find(names[0]);
      if (object == nullptr || !object->is_object())
        fail("'" + names[0] + "' is no namespace, so its attributes cannot be set");
      object->object().set(attribute, std::move(value));
    } else if (names.size() == 1) {
      frame.scope->names.set(names[0], std::move(value));
    } else {
      const List items = items_of(value);
      if (items.size() != names.size())
        fail(std::to_string(items.size()) + " values do not go into " +
             std::to_string(names.size()) + " names");
      for (std::size_t i = 0; i < names.size(); ++i) frame.scope->names.set(names[i], items[i]);
    }
  }
};

struct For : Statement {
  using Statement::Statement;
  Flow execute(Frame& frame) const override {
    loop_over(sequence->value(frame), frame, 1);
    return Flow::next;
  }

  void loop_over(const Value& value, Frame& frame, int depth) const {
    List items = items_of(value);
    if (filter) {
      List kept;
      for (Value& one : items) {
        Frame turn = frame.inner();
        target.assign(one, turn);
        if (truth(filter->value(turn))) kept.push_back(std::move(one));
      }
      items = std::move(kept);
    }
    const auto number = std::make_shared<std::size_t>(0);
    const Value loop = loop_object(items.size(), frame, depth, number);
    bool completed = false;  // a turn reached its end: in Jinja that alone keeps `else` away
    for (std::size_t i = 0; i < items.size(); ++i) {
      frame.rendering.step();
      Frame turn = frame.inner();
      target.assign(items[i], turn);
      *number = i;
      update(loop.object(), items, i);
      turn.scope->names.set("loop", loop);
      const Flow flow = body.run(turn);
      if (flow == Flow::break_loop) break;
      completed = completed || flow == Flow::next;
    }
    if (!completed) {
      Frame inside = frame.inner();
      otherwise.run(inside);
    }
  }

  /// What `loop` is, but for what changes from turn to turn.
  Value loop_object(std::size_t length, Frame& frame, int depth,
                    const std::shared_ptr<const std::size_t>& turn) const {
    const auto last_seen = std::make_shared<Value>(Undefined{});
    Map loop;
    for (const char* name :
         {"index", "index0", "first", "last", "revindex", "revindex0", "previtem", "nextitem"})
      loop.append(name, None());
    loop.append("length", length);
    loop.append("depth", depth);
    loop.append("depth0", depth - 1);
    loop.append("cycle", Function([turn](const Arguments& a) -> Value {
                  if (a.positional.empty()) fail("cycle() of nothing");
                  return a.positional[*turn % a.positional.size()];
                }));
    loop.append("changed", Function([last_seen](const Arguments& a) -> Value {
                  Value now = List(a.positional);
                  const bool changed = last_seen->is_undefined() || !equal(*last_seen, now);
                  *last_seen = std::move(now);
                  return changed;
                }));
    if (recursive)
      loop.append("__call__", Function([this, inside = frame, depth](const Arguments& a) -> Value {
                    Frame copy = inside;
                    const Deeper deeper(copy.rendering);
                    std::string out;
                    std::string* outside = std::exchange(copy.rendering.out, &out);
                    loop_over(a.need(0, "iterable"), copy, depth + 1);
                    copy.rendering.out = outside;
                    return out;
                  }));
    return Value::object(std::move(loop));
  }

  static void update(Map& loop, const List& items, std::size_t i) {
    loop.set("index", i + 1);
    loop.set("index0", i);
    loop.set("first", i == 0);
    loop.set("last", i + 1 == items.size());
    loop.set("revindex", items.size() - i);
    loop.set("revindex0", items.size() - i - 1);
    loop.set("previtem", i > 0 ? items[i - 1] : Undefined{"there is no previous item"});
    loop.set("nextitem", i + 1 < items.size() ? items[i + 1] : Undefined{"there is no next item"});
  }

  Target target;
  ExpressionPointer sequence, filter;  // filter: may be null
  Body body, otherwise;
  bool recursive = false;
};

struct Set : Statement {
  using Statement::Statement;
  Flow execute(Frame& frame) const override {
    Value value;
    if (expression) {
      value = expression->value(frame);
    } else {
      Frame inside = frame.inner();
      value = body.text(inside);
      for (const auto& filter : filters) value = filter->apply(value, frame);
    }
    target.assign(std::move(value), frame);
    return Flow::next;
  }
  Target target;
  ExpressionPointer expression;  // null: the body's text, filtered
  Body body;
  std::vector<std::unique_ptr<const FilterCall>> filters;
};

/// The parameters and body of a macro or of a `call` block.
struct MacroDefinition {
  std::string name;
  std::vector<std::pair<std::string, ExpressionPointer>> parameters;  // with default, or null
  Body body;

  /// The function that it is when defined in `frame`; the template must outlive it.
  Value function(Frame& frame) const {
    return Function([this, scope = std::weak_ptr<Scope>(frame.scope),
                     &rendering = frame.rendering](const Arguments& a) -> Value {
      const Deeper deeper(rendering);
      Frame defined{rendering, scope.lock()};
      if (!defined.scope) fail("the macro '" + name + "' is called outside of its block");
      Frame inside = defined.inner();
      Scope& names = *inside.scope;
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        const auto& [parameter, fallback] = parameters[i];
        if (const Value* given = a.find(i, parameter))
          names.names.set(parameter, *given);
        else if (fallback)
          names.names.set(parameter, fallback->value(inside));
        else
          names.names.set(parameter, Undefined{"parameter '" + parameter + "' was not provided"});
      }
      Map rest;
      for (const auto& [key, value] : a.named) {
        if (key == "caller")
          names.names.set(key, value);
        else if (!names.names.contains(key))
          rest.set(key, value);
      }
      names.names.set("kwargs", std::move(rest));
      names.names.set("varargs", Value::tuple(detail::behind(a, parameters.size()).positional));
      return body.text(inside);
    });
  }
};

struct Macro : Statement {
  using Statement::Statement;
  Flow execute(Frame& frame) const override {
    frame.scope->names.set(definition.name, definition.function(frame));
    return Flow::next;
  }
  MacroDefinition definition;
};

struct CallBlock : Statement {
  using Statement::Statement;
  Flow execute(Frame& frame) const override {
    Arguments arguments = call->arguments.evaluate(frame);
    arguments.named.emplace_back("caller", caller.function(frame));
    frame.rendering.print(text_of(call->call(frame, arguments)));
    return Flow::next;
  }
  std::unique_ptr<const Call> call;
  MacroDefinition caller;
};

struct FilterBlock : Statement {
  using Statement::Statement;
  Flow execute(Frame& frame) const override {
    Frame inside = frame.inner();
    Value value = body.text(inside);
    for (const auto& filter : filters) value = filter->apply(value, frame);
    frame.rendering.print(text_of(value));
    return Flow::next;
  }
  std::vector<std::unique_ptr<const FilterCall>> filters;
  Body body;
};

/// A `with` or `generation` block.
struct With : Statement {
  using Statement::Statement;
  Flow execute(Frame& frame) const override {
    if (!has_scope) return body.run(frame);
    Frame inside = frame.inner();
    for (const auto& [name, expression] : names)
      inside.scope->names.set(name, expression->value(frame));
    return body.run(inside);
  }
  std::vector<std::pair<std::string, ExpressionPointer>> names;
  Body body;
  bool has_scope = true;
};

struct Jump : Statement {
  Jump(int line, Flow f) : Statement(line), flow(f) {}
  Flow execute(Frame&) const override { return flow; }
  Flow flow;
};

}  // namespace dflash::jinja
