#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dflash/text/jinja/expressions.hpp"
#include "dflash/text/jinja/token_reader.hpp"

namespace dflash::jinja {

/// Reads expressions, with Jinja's order of operators.
class ExpressionParser {
 public:
  explicit ExpressionParser(TokenReader& tokens) : tokens_(tokens) {}

  /// One expression, or several with commas between as a tuple. `with_if`: `a if b else c` counts.
  ExpressionPointer several(bool with_if = true) {
    const int line = tokens_.line();
    ExpressionPointer first = with_if ? one() : either();
    if (!tokens_.now().is_sign(",")) return first;
    std::vector<ExpressionPointer> items;
    items.push_back(std::move(first));
    while (tokens_.take_sign(",") && !ends_several()) items.push_back(with_if ? one() : either());
    return std::make_unique<ListLiteral>(line, std::move(items), true);
  }

  /// conditional: or-expression [if condition [else conditional]]
  ExpressionPointer one() {
    NestingGuard guard(depth_);
    ExpressionPointer value = either();
    while (tokens_.now().is_name("if")) {
      guard.more();
      const int line = tokens_.take().line;
      ExpressionPointer condition = either();
      ExpressionPointer no = tokens_.take_name("else") ? one() : nullptr;
      value = std::make_unique<Conditional>(line, std::move(condition), std::move(value),
                                            std::move(no));
    }
    return value;
  }

  /// `|name(arguments)` and its name, without what stands before.
  std::unique_ptr<const FilterCall> filter(ExpressionPointer input) {
    const int line = tokens_.line();
    const std::string name = dotted_name("the name of a filter");
    CallArguments arguments;
    if (tokens_.now().is_sign("(")) arguments = call_arguments();
    return std::make_unique<FilterCall>(line, std::move(input), name, std::move(arguments));
  }

  /// A name or literal with what follows it: `.name`, `[...]`, `(...)`.
  ExpressionPointer primary_with_postfix() { return postfix(primary()); }

  CallArguments call_arguments() {
    tokens_.need_sign("(");
    CallArguments arguments;
    while (!tokens_.take_sign(")")) {
      if (tokens_.take_sign("*")) {
        arguments.list = one();
      } else if (tokens_.take_sign("**")) {
        arguments.map = one();
      } else if (tokens_.now().kind == TokenKind::name && tokens_.after().is_sign("=")) {
        std::string name = tokens_.take().text;
        tokens_.take();
        arguments.named.emplace_back(std::move(name), one());
      } else {
        if (!arguments.named.empty()) fail("an argument without a name follows one with a name");
        arguments.positional.push_back(one());
      }
      if (!tokens_.now().is_sign(")")) tokens_.need_sign(",");
    }
    return arguments;
  }

  int& depth() { return depth_; }

 private:
  bool ends_several() const {
    const Token& token = tokens_.now();
    return token.kind == TokenKind::tag_end || token.kind == TokenKind::output_end ||
           token.kind == TokenKind::end || token.is_sign(")") || token.is_name("in") ||
           token.is_name("recursive");
  }

  ExpressionPointer either() {
    NestingGuard guard(depth_);
    ExpressionPointer left = both();
    while (tokens_.now().is_name("or")) {
      guard.more();
      const int line = tokens_.take().line;
      left = std::make_unique<Binary>(line, '|', std::move(left), both());
    }
    return left;
  }
  ExpressionPointer both() {
    NestingGuard guard(depth_);
    ExpressionPointer left = negation();
    while (tokens_.now().is_name("and")) {
      guard.more();
      const int line = tokens_.take().line;
      left = std::make_unique<Binary>(line, '&', std::move(left), negation());
    }
    return left;
  }
  ExpressionPointer negation() {
    if (!tokens_.now().is_name("not")) return comparison();
    NestingGuard guard(depth_);
    const int line = tokens_.take().line;
    return std::make_unique<Unary>(line, '!', negation());
  }
  ExpressionPointer comparison() {
    const int line = tokens_.line();
    ExpressionPointer first = sum();
    Comparison::Others others;
    while (true) {
      std::string sign;
      for (const char* known : {"==", "!=", "<", "<=", ">", ">="})
        if (tokens_.now().is_sign(known)) sign = known;
      if (tokens_.now().is_name("in")) sign = "in";
      if (tokens_.now().is_name("not") && tokens_.after().is_name("in")) sign = "not in";
      if (sign.empty()) break;
      tokens_.take();
      if (sign == "not in") tokens_.take();
      others.emplace_back(sign, sum());
    }
    if (others.empty()) return first;
    return std::make_unique<Comparison>(line, std::move(first), std::move(others));
  }

  using Signs = std::vector<std::pair<const char*, char>>;
  template <class Next>
  ExpressionPointer chain(const Signs& signs, Next next) {
    NestingGuard guard(depth_);
    ExpressionPointer left = next();
    while (true) {
      char operation = 0;
      for (const auto& [sign, meaning] : signs)
        if (tokens_.now().is_sign(sign)) operation = meaning;
      if (operation == 0) return left;
      guard.more();
      const int line = tokens_.take().line;
      left = std::make_unique<Binary>(line, operation, std::move(left), next());
    }
  }
  ExpressionPointer sum() {
    return chain({{"+", '+'}, {"-", '-'}}, [this] { return concatenation(); });
  }
  ExpressionPointer concatenation() {
    return chain({{"~", '~'}}, [this] { return product(); });
  }
  ExpressionPointer product() {
    return chain({{"*", '*'}, {"/", '/'}, {"//", 'f'}, {"%", '%'}}, [this] { return power(); });
  }
  ExpressionPointer power() {
    return chain({{"**", '^'}}, [this] { return unary(true); });
  }
  ExpressionPointer unary(bool with_filters) {
    NestingGuard guard(depth_);
    ExpressionPointer value;
    if (tokens_.now().is_sign("-") || tokens_.now().is_sign("+")) {
      const Token sign = tokens_.take();
      value = std::make_unique<Unary>(sign.line, sign.text[0], unary(false));
    } else {
      value = primary();
    }
    value = postfix(std::move(value));
    return with_filters ? filters_and_tests(std::move(value)) : std::move(value);
  }

  ExpressionPointer primary() {
    const Token token = tokens_.now();
    switch (token.kind) {
      case TokenKind::string: {
        std::string text;
        while (tokens_.now().kind == TokenKind::string) text += tokens_.take().text;
        return std::make_unique<Constant>(token.line, std::move(text));
      }
      case TokenKind::integer:
      case TokenKind::real:
        tokens_.take();
        return std::make_unique<Constant>(token.line, token.value);
      case TokenKind::name:
        tokens_.take();
        if (token.text == "true" || token.text == "True")
          return std::make_unique<Constant>(token.line, true);
        if (token.text == "false" || token.text == "False")
          return std::make_unique<Constant>(token.line, false);
        if (token.text == "none" || token.text == "None")
          return std::make_unique<Constant>(token.line, None());
        return std::make_unique<Name>(token.line, token.text);
      default:
        break;
    }
    if (tokens_.take_sign("(")) return parenthesis(token.line);
    if (tokens_.take_sign("[")) {
      std::vector<ExpressionPointer> items;
      while (!tokens_.take_sign("]")) {
        items.push_back(one());
        if (!tokens_.now().is_sign("]")) tokens_.need_sign(",");
      }
      return std::make_unique<ListLiteral>(token.line, std::move(items));
    }
    if (tokens_.take_sign("{")) {
      MapLiteral::Entries entries;
      while (!tokens_.take_sign("}")) {
        ExpressionPointer key = one();
        tokens_.need_sign(":");
        entries.emplace_back(std::move(key), one());
        if (!tokens_.now().is_sign("}")) tokens_.need_sign(",");
      }
      return std::make_unique<MapLiteral>(token.line, std::move(entries));
    }
    tokens_.unexpected("a value");
  }

  ExpressionPointer parenthesis(int line) {
    if (tokens_.take_sign(")"))
      return std::make_unique<ListLiteral>(line, std::vector<ExpressionPointer>(), true);
    ExpressionPointer value = several();
    tokens_.need_sign(")");
    return value;
  }

  ExpressionPointer postfix(ExpressionPointer value) {
    NestingGuard guard(depth_);
    while (true) {
      const int line = tokens_.line();
      if (tokens_.take_sign(".")) {
        const Token name = tokens_.take();
        if (name.kind == TokenKind::integer)
          value = std::make_unique<Item>(line, std::move(value),
                                         std::make_unique<Constant>(line, name.value));
        else if (name.kind == TokenKind::name)
          value = std::make_unique<Attribute>(line, std::move(value), name.text);
        else
          fail("a '.' has no name behind it");
      } else if (tokens_.take_sign("[")) {
        value = subscript(line, std::move(value));
      } else if (tokens_.now().is_sign("(")) {
        value = std::make_unique<Call>(line, std::move(value), call_arguments());
      } else {
        return value;
      }
      guard.more();
    }
  }

  ExpressionPointer subscript(int line, ExpressionPointer object) {
    ExpressionPointer bounds[3];
    int at = 0;
    bool is_slice = false;
    while (!tokens_.take_sign("]")) {
      if (tokens_.take_sign(":")) {
        is_slice = true;
        if (++at > 2) fail("a slice has more than three parts");
      } else {
        if (bounds[at]) tokens_.unexpected("']'");
        bounds[at] = one();
      }
    }
    if (is_slice) return std::make_unique<Slice>(line, std::move(object), std::move(bounds));
    if (!bounds[0]) fail("a pair of brackets is empty");
    return std::make_unique<Item>(line, std::move(object), std::move(bounds[0]));
  }

  std::string dotted_name(const char* what) {
    std::string name = tokens_.need(TokenKind::name, what).text;
    while (tokens_.take_sign(".")) {
      name += '.';
      name += tokens_.need(TokenKind::name, what).text;
    }
    return name;
  }

  ExpressionPointer filters_and_tests(ExpressionPointer value) {
    NestingGuard guard(depth_);
    while (true) {
      if (tokens_.take_sign("|")) {
        value = filter(std::move(value));
      } else if (tokens_.now().is_name("is")) {
        value = test(std::move(value));
      } else if (tokens_.now().is_sign("(")) {
        value = std::make_unique<Call>(tokens_.line(), std::move(value), call_arguments());
      } else {
        return value;
      }
      guard.more();
    }
  }

  ExpressionPointer test(ExpressionPointer value) {
    const int line = tokens_.take().line;
    const bool negated = tokens_.take_name("not");
    const std::string name = dotted_name("the name of a test");
    CallArguments arguments;
    const Token& next = tokens_.now();
    const bool is_word = next.is_name("else") || next.is_name("or") || next.is_name("and") ||
                         next.is_name("if") || next.is_name("is");
    if (next.is_sign("(")) {
      arguments = call_arguments();
    } else if ((next.kind == TokenKind::name && !is_word) || next.kind == TokenKind::string ||
               next.kind == TokenKind::integer || next.kind == TokenKind::real ||
               next.is_sign("[") || next.is_sign("{")) {
      arguments.positional.push_back(postfix(primary()));
    }
    return std::make_unique<TestCall>(line, std::move(value), name, std::move(arguments), negated);
  }

  TokenReader& tokens_;
  int depth_ = 0;
};

}  // namespace dflash::jinja
