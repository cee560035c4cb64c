#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dflash/text/jinja/lexer.hpp"

namespace dflash::jinja {

/// Walks over the tokens of a template. The last one is the end and stays.
class TokenReader {
 public:
  explicit TokenReader(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& now() const { return tokens_[at_]; }
  const Token& after() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  int line() const { return now().line; }

  Token take() {
    Token token = now();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool take_sign(std::string_view sign) { return now().is_sign(sign) && (take(), true); }
  bool take_name(std::string_view name) { return now().is_name(name) && (take(), true); }

  /// Failure if something else comes.
  void need_sign(std::string_view sign) {
    if (!take_sign(sign)) unexpected("'" + std::string(sign) + "'");
  }
  void need_name(std::string_view name) {
    if (!take_name(name)) unexpected("'" + std::string(name) + "'");
  }
  Token need(TokenKind kind, const char* what) {
    if (now().kind != kind) unexpected(what);
    return take();
  }
  [[noreturn]] void unexpected(const std::string& wanted) const {
    const Token& token = now();
    const bool shown = token.kind == TokenKind::name || token.kind == TokenKind::sign ||
                       token.kind == TokenKind::integer || token.kind == TokenKind::real;
    fail("expected " + wanted + " before " +
         (shown                                 ? "'" + token.text + "'"
          : token.kind == TokenKind::string     ? "a string"
          : token.kind == TokenKind::output_end ? "'}}'"
          : token.kind == TokenKind::tag_end    ? "'%}'"
                                                : "the end of the template"));
  }

 private:
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
};

/// Ends templates whose parts are nested so deeply, or chained so long, that recursion over them
/// could exhaust the stack.
class NestingGuard {
 public:
  explicit NestingGuard(int& depth) : depth_(depth), before_(depth) { more(); }
  ~NestingGuard() { depth_ = before_; }
  NestingGuard(const NestingGuard&) = delete;
  NestingGuard& operator=(const NestingGuard&) = delete;

  void more() {
    if (++depth_ > 200) fail("the template is nested too deeply");
  }

 private:
  int& depth_;
  int before_;
};

}  // namespace dflash::jinja
