#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "dflash/core/error.hpp"
#include "dflash/text/jinja/globals.hpp"
#include "dflash/text/jinja/lexer.hpp"
#include "dflash/text/jinja/parser.hpp"

namespace dflash {

/// A chat template in the part of Jinja that chat templates use, rendered as Hugging Face's
/// `apply_chat_template` renders it. Needs no files and touches none; endless templates fail.
class JinjaTemplate {
 public:
  /// Error naming `name` and the line of what cannot be read.
  JinjaTemplate(std::string_view source, std::string name) : name_(std::move(name)) {
    jinja::Lexer lexer(source);
    int line = 1;
    try {
      jinja::TokenReader tokens(lexer.run());
      try {
        body_ = jinja::Parser(tokens).run();
      } catch (const jinja::Failure&) {
        line = tokens.line();
        throw;
      }
    } catch (const jinja::Failure& failure) {
      throw error(std::max(line, lexer.line()), failure);
    }
  }

  /// The text for these variables. Error naming the template and the line.
  std::string render(jinja::Map variables) const {
    std::string out;
    jinja::Rendering rendering;
    rendering.out = &out;
    auto scope = std::make_shared<jinja::Scope>();
    scope->parent = jinja::global_scope();
    scope->names = std::move(variables);
    jinja::Frame frame{rendering, std::move(scope)};
    try {
      body_.run(frame);
    } catch (const jinja::Failure& failure) {
      throw error(rendering.line, failure);
    }
    return out;
  }

 private:
  Error error(int line, const jinja::Failure& failure) const {
    return Error(name_ + ", line " + std::to_string(line) + ": " + failure.what);
  }

  std::string name_;
  jinja::Body body_;
};

}  // namespace dflash
