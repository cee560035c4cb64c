#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "dflash/text/jinja/expression_parser.hpp"
#include "dflash/text/jinja/statements.hpp"

namespace dflash::jinja {

/// Reads a whole template.
class Parser {
 public:
  explicit Parser(TokenReader& tokens) : tokens_(tokens), expressions_(tokens) {}

  Body run() {
    Body body = read_body({});
    if (tokens_.now().kind != TokenKind::end) fail("'" + tokens_.after().text + "' ends nothing");
    return body;
  }

 private:
  using Words = std::initializer_list<std::string_view>;

  /// Statements up to a tag that begins with one of `ends`, or the end of the template.
  Body read_body(Words ends) {
    const NestingGuard guard(expressions_.depth());
    Body body;
    while (tokens_.now().kind != TokenKind::end) {
      const int line = tokens_.line();
      if (tokens_.now().kind == TokenKind::text) {
        body.statements.push_back(std::make_unique<Text>(line, tokens_.take().text));
      } else if (tokens_.now().kind == TokenKind::output_begin) {
        tokens_.take();
        body.statements.push_back(std::make_unique<Output>(line, expressions_.several()));
        tokens_.need(TokenKind::output_end, "'}}'");
      } else {
        const std::string_view word = tokens_.after().text;
        for (const std::string_view end : ends)
          if (word == end) return body;
        if (word.starts_with("end") || word == "else" || word == "elif") return body;
        tokens_.take();
        body.statements.push_back(read_tag(line));
      }
    }
    return body;
  }

  /// A body and the `{% end %}` behind it.
  Body read_block(std::string_view end) {
    end_tag();
    Body body = read_body({end});
    close(end);
    return body;
  }
  void end_tag() { tokens_.need(TokenKind::tag_end, "'%}'"); }
  /// `{% word %}`.
  void close(std::string_view word) {
    if (tokens_.now().kind != TokenKind::tag_begin || !tokens_.after().is_name(word))
      fail("'" + std::string(word) + "' is missing");
    tokens_.take();
    tokens_.take();
    end_tag();
  }

  std::unique_ptr<const Statement> read_tag(int line) {
    const std::string word = tokens_.need(TokenKind::name, "the name of a tag").text;
    if (word == "if") return read_if(line);
    if (word == "for") return read_for(line);
    if (word == "set") return read_set(line);
    if (word == "macro") return read_macro(line);
    if (word == "call") return read_call(line);
    if (word == "filter") return read_filter(line);
    if (word == "with") return read_with(line);
    if (word == "generation") {
      auto block = std::make_unique<With>(line);
      block->has_scope = false;
      block->body = read_block("endgeneration");
      return block;
    }
    if (word == "break" || word == "continue") {
      if (loops_ == 0) fail("'" + word + "' stands outside of a loop");
      end_tag();
      return std::make_unique<Jump>(line, word == "break" ? Flow::break_loop : Flow::continue_loop);
    }
    fail("the tag '" + word + "' is not supported");
  }

  std::unique_ptr<const Statement> read_if(int line) {
    auto statement = std::make_unique<If>(line);
    while (true) {
      ExpressionPointer condition = expressions_.several(false);
      end_tag();
      statement->branches.emplace_back(std::move(condition), read_body({}));
      if (!tokens_.after().is_name("elif") || tokens_.now().kind != TokenKind::tag_begin) break;
      tokens_.take();
      tokens_.take();
    }
    if (tokens_.now().kind == TokenKind::tag_begin && tokens_.after().is_name("else")) {
      tokens_.take();
      tokens_.take();
      statement->otherwise = read_block("endif");
    } else {
      close("endif");
    }
    return statement;
  }

  std::unique_ptr<const Statement> read_for(int line) {
    auto statement = std::make_unique<For>(line);
    statement->target = read_target();
    tokens_.need_name("in");
    statement->sequence = expressions_.several(false);
    if (tokens_.take_name("if")) statement->filter = expressions_.one();
    statement->recursive = tokens_.take_name("recursive");
    end_tag();
    ++loops_;
    statement->body = read_body({});
    --loops_;
    if (tokens_.now().kind == TokenKind::tag_begin && tokens_.after().is_name("else")) {
      tokens_.take();
      tokens_.take();
      statement->otherwise = read_block("endfor");
    } else {
      close("endfor");
    }
    return statement;
  }

  Target read_target() {
    Target target;
    const bool in_parentheses = tokens_.take_sign("(");
    do target.names.push_back(tokens_.need(TokenKind::name, "a name").text);
    while (tokens_.take_sign(",") && tokens_.now().kind == TokenKind::name);
    if (in_parentheses) tokens_.need_sign(")");
    if (target.names.size() == 1 && tokens_.take_sign("."))
      target.attribute = tokens_.need(TokenKind::name, "the name of an attribute").text;
    return target;
  }

  std::unique_ptr<const Statement> read_set(int line) {
    auto statement = std::make_unique<Set>(line);
    statement->target = read_target();
    if (tokens_.take_sign("=")) {
      statement->expression = expressions_.several();
      end_tag();
    } else {
      while (tokens_.take_sign("|")) statement->filters.push_back(expressions_.filter(nullptr));
      statement->body = read_block("endset");
    }
    return statement;
  }

  void read_parameters(MacroDefinition& macro) {
    tokens_.need_sign("(");
    while (!tokens_.take_sign(")")) {
      std::string name = tokens_.need(TokenKind::name, "the name of a parameter").text;
      ExpressionPointer fallback = tokens_.take_sign("=") ? expressions_.one() : nullptr;
      macro.parameters.emplace_back(std::move(name), std::move(fallback));
      if (!tokens_.now().is_sign(")")) tokens_.need_sign(",");
    }
  }

  std::unique_ptr<const Statement> read_macro(int line) {
    auto statement = std::make_unique<Macro>(line);
    statement->definition.name = tokens_.need(TokenKind::name, "the name of a macro").text;
    read_parameters(statement->definition);
    const int outside = std::exchange(loops_, 0);
    statement->definition.body = read_block("endmacro");
    loops_ = outside;
    return statement;
  }

  std::unique_ptr<const Statement> read_call(int line) {
    auto statement = std::make_unique<CallBlock>(line);
    statement->caller.name = "caller";
    if (tokens_.now().is_sign("(")) read_parameters(statement->caller);
    ExpressionPointer called = expressions_.primary_with_postfix();
    if (dynamic_cast<const Call*>(called.get()) == nullptr) fail("'call' needs a call");
    statement->call.reset(static_cast<const Call*>(called.release()));
    const int outside = std::exchange(loops_, 0);
    statement->caller.body = read_block("endcall");
    loops_ = outside;
    return statement;
  }

  std::unique_ptr<const Statement> read_filter(int line) {
    auto statement = std::make_unique<FilterBlock>(line);
    do statement->filters.push_back(expressions_.filter(nullptr));
    while (tokens_.take_sign("|"));
    statement->body = read_block("endfilter");
    return statement;
  }

  std::unique_ptr<const Statement> read_with(int line) {
    auto statement = std::make_unique<With>(line);
    while (tokens_.now().kind == TokenKind::name) {
      std::string name = tokens_.take().text;
      tokens_.need_sign("=");
      statement->names.emplace_back(std::move(name), expressions_.one());
      if (!tokens_.take_sign(",")) break;
    }
    statement->body = read_block("endwith");
    return statement;
  }

  TokenReader& tokens_;
  ExpressionParser expressions_;
  int loops_ = 0;  // around the present place
};

}  // namespace dflash::jinja
