#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/text/jinja/strings.hpp"
#include "dflash/text/jinja/value.hpp"

namespace dflash::jinja {

enum class TokenKind {
  text,
  output_begin,
  output_end,
  tag_begin,
  tag_end,
  name,
  string,
  integer,
  real,
  sign,
  end
};

struct Token {
  TokenKind kind = TokenKind::end;
  std::string text;  // the text, name or sign; the value of a string
  Value value;       // of a number
  int line = 1;

  bool is(TokenKind k, std::string_view t) const { return kind == k && text == t; }
  bool is_sign(std::string_view t) const { return is(TokenKind::sign, t); }
  bool is_name(std::string_view t) const { return is(TokenKind::name, t); }
};

/// Cuts a template into tokens, with the white space rules of Hugging Face's chat templates:
/// trim_blocks and lstrip_blocks are on, one newline at the end of the template goes.
class Lexer {
 public:
  /// Failure at `line()` for what is no template.
  explicit Lexer(std::string_view source) {
    for (std::size_t i = 0; i < source.size(); ++i) {
      const bool carriage = source[i] == '\r';
      if (carriage && i + 1 < source.size() && source[i + 1] == '\n') ++i;
      source_ += carriage ? '\n' : source[i];
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      std::size_t open = at_;
      while ((open = source_.find('{', open)) != source_.npos &&
             (open + 1 >= source_.size() ||
              std::string_view("{%#").find(source_[open + 1]) == std::string_view::npos))
        ++open;
      if (open == source_.npos) {
        add_text(source_.substr(at_));
        at_ = source_.size();
        break;
      }
      const char kind = source_[open + 1];
      add_text(before_tag(open, kind));
      advance(open + 2);
      const bool has_sign = peek() == '-' || peek() == '+';
      if (kind == '#') {
        skip_comment();
      } else if (kind == '%' && is_raw(at_ + has_sign)) {
        read_raw();
      } else {
        if (has_sign) advance(at_ + 1);
        add({kind == '{' ? TokenKind::output_begin : TokenKind::tag_begin, "", {}, line_});
        read_expression(kind == '{' ? '}' : '%');
      }
    }
    add({TokenKind::end, "", {}, line_});
    return std::move(tokens_);
  }

  int line() const { return line_; }

 private:
  char peek(std::size_t ahead = 0) const {
    return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0';
  }
  void advance(std::size_t to) {
    line_ += int(std::count(source_.begin() + std::ptrdiff_t(at_),
                            source_.begin() + std::ptrdiff_t(to), '\n'));
    at_ = to;
  }
  void add(Token token) { tokens_.push_back(std::move(token)); }
  void add_text(std::string text) {
    if (!text.empty()) add({TokenKind::text, std::move(text), {}, line_});
  }

  static std::string_view without_space_at_end(std::string_view text) {
    return strip(text, None(), false, true);
  }

  /// The text up to a tag at `open`, less the white space that the tag takes.
  std::string before_tag(std::size_t open, char kind) const {
    const std::string_view text = std::string_view(source_).substr(at_, open - at_);
    const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    if (sign == '-') return std::string(without_space_at_end(text));
    if (sign == '+' || kind == '{') return std::string(text);
    const std::size_t newline = text.rfind('\n');
    const std::size_t line_start = newline == text.npos ? 0 : newline + 1;
    const bool starts_line = newline != text.npos || at_ == 0 || source_[at_ - 1] == '\n';
    if (starts_line && without_space_at_end(text.substr(line_start)).empty())
      return std::string(text.substr(0, line_start));
    return std::string(text);
  }

  /// Takes what a tag that ended with `sign` takes of the text behind it.
  void after_tag(char sign, bool trims_newline) {
    std::size_t to = at_;
    if (sign == '-') {
      const std::string_view rest = std::string_view(source_).substr(at_);
      to = source_.size() - strip(rest, None(), true, false).size();
    } else if (sign != '+' && trims_newline && peek() == '\n') {
      ++to;
    }
    advance(to);
  }

  void skip_comment() {
    const std::size_t close = source_.find("#}", at_);
    if (close == source_.npos) fail("a comment does not end");
    const char sign = close > at_ ? source_[close - 1] : '\0';
    advance(close + 2);
    after_tag(sign, true);
  }

  std::size_t skip_space(std::size_t at) const {
    while (at < source_.size() && is_space(static_cast<unsigned char>(source_[at]))) ++at;
    return at;
  }

  /// Whether `word %}` follows at `at`; moves behind it and tells the sign before the %.
  bool ends_tag(std::string_view word, std::size_t& at, char& sign) const {
    std::size_t i = skip_space(at);
    if (source_.compare(i, word.size(), word) != 0) return false;
    i = skip_space(i + word.size());
    sign = i < source_.size() && (source_[i] == '-' || source_[i] == '+') ? source_[i++] : '\0';
    if (source_.compare(i, 2, "%}") != 0) return false;
    at = i + 2;
    return true;
  }
  bool is_raw(std::size_t at) const {
    char sign = 0;
    return ends_tag("raw", at, sign);
  }

  void read_raw() {
    std::size_t at = at_ + (peek() == '-' || peek() == '+');
    char sign = 0;
    ends_tag("raw", at, sign);
    advance(at);
    after_tag(sign, false);
    for (std::size_t open = at_; (open = source_.find("{%", open)) != source_.npos; open += 2) {
      std::size_t end = open + 2;
      if (end < source_.size() && (source_[end] == '-' || source_[end] == '+')) ++end;
      if (!ends_tag("endraw", end, sign)) continue;
      add_text(before_tag(open, '%'));
      advance(end);
      after_tag(sign, true);
      return;
    }
    fail("'raw' has no 'endraw'");
  }

  /// Reads up to the `}}` (close == '}') or `%}` that ends the tag.
  void read_expression(char close) {
    std::string open;  // brackets that wait for their partner
    while (true) {
      advance(skip_space(at_));
      if (at_ >= source_.size()) fail("the template ends inside a tag");
      const std::size_t sign = open.empty() && (peek() == '-' || (peek() == '+' && close == '%'));
      if (open.empty() && peek(sign) == close && peek(sign + 1) == '}') {
        add({close == '}' ? TokenKind::output_end : TokenKind::tag_end, "", {}, line_});
        const char mark = sign != 0 ? peek() : '\0';
        advance(at_ + sign + 2);
        after_tag(mark, close == '%');
        return;
      }
      read_token(open);
    }
  }

  static int hex_digit(char c) {
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }
  static bool is_name_part(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           static_cast<unsigned char>(c) >= 0x80;
  }

  void read_token(std::string& open) {
    const char c = peek();
    if (is_digit(c)) return read_number();
    if (c == '"' || c == '\'') return read_string();
    if (is_name_part(c)) {
      std::size_t end = at_;
      while (end < source_.size() && is_name_part(source_[end])) ++end;
      add({TokenKind::name, source_.substr(at_, end - at_), {}, line_});
      return advance(end);
    }
    std::string sign(1, c);
    for (const char* two : {"//", "**", "==", "!=", ">=", "<="})
      if (source_.compare(at_, 2, two) == 0) sign = two;
    if (std::string_view("+-/*%~[](){}=<>.:|,;!").find(c) == std::string_view::npos || sign == "!")
      fail("the character '" + source_.substr(at_, code_point_at(source_, at_).size) +
           "' has no meaning here");
    if (c == '(' || c == '[' || c == '{') open += c;
    if (c == ')' || c == ']' || c == '}') {
      const char partner = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open.empty() || open.back() != partner) fail("'" + sign + "' closes nothing");
      open.pop_back();
    }
    add({TokenKind::sign, sign, {}, line_});
    advance(at_ + sign.size());
  }

  void read_number() {
    const bool after_dot = !tokens_.empty() && tokens_.back().is_sign(".");
    std::string digits;
    bool is_real = false;
    std::size_t end = at_;
    const auto take_digits = [&] {
      for (; end < source_.size() && (is_digit(source_[end]) || source_[end] == '_'); ++end)
        if (source_[end] != '_') digits += source_[end];
    };
    const auto digit_at = [&](std::size_t i) { return i < source_.size() && is_digit(source_[i]); };
    take_digits();
    if (!after_dot && end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      is_real = true;
      digits += source_[end++];
      take_digits();
    }
    if (!after_dot && end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const std::size_t sign =
          end + 1 < source_.size() && (source_[end + 1] == '-' || source_[end + 1] == '+');
      if (digit_at(end + 1 + sign)) {
        is_real = true;
        digits += source_.substr(end, 1 + sign);
        end += 1 + sign;
        take_digits();
      }
    }
    Token token{is_real ? TokenKind::real : TokenKind::integer, digits, {}, line_};
    std::int64_t whole = 0;
    double real = 0;
    const char* last = digits.data() + digits.size();
    const auto read = is_real ? std::from_chars(digits.data(), last, real)
                              : std::from_chars(digits.data(), last, whole);
    if (read.ec != std::errc() || read.ptr != last) fail("the number " + digits + " is too large");
    if (is_real)
      token.value = real;
    else
      token.value = whole;
    add(std::move(token));
    advance(end);
  }

  void read_string() {
    const char quote = peek();
    const int line = line_;
    std::string text;
    std::size_t i = at_ + 1;
    while (i < source_.size() && source_[i] != quote) {
      if (source_[i] != '\\') {
        text += source_[i++];
        continue;
      }
      if (++i >= source_.size()) break;
      i = read_escape(i, text);
    }
    if (i >= source_.size()) fail("a string does not end");
    advance(i + 1);
    add({TokenKind::string, std::move(text), {}, line});
  }

  /// Adds what the escape sequence at `at`, just behind the backslash, stands for.
  std::size_t read_escape(std::size_t at, std::string& text) const {
    constexpr std::string_view letters = "\\'\"abfnrtv", values = "\\'\"\a\b\f\n\r\t\v";
    const char c = source_[at];
    if (const std::size_t i = letters.find(c); i != letters.npos) {
      text += values[i];
      return at + 1;
    }
    if (c == '\n') return at + 1;
    std::size_t end = at;
    char32_t value = 0;
    if (c == 'x' || c == 'u' || c == 'U') {
      int digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      for (++end; digits > 0 && end < source_.size(); --digits, ++end) {
        const int digit = hex_digit(source_[end]);
        if (digit < 0) break;
        value = value << 4 | char32_t(digit);
      }
      if (digits > 0 || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
        fail("an escape sequence in a string makes no character");
    } else if (c >= '0' && c <= '7') {
      for (; end < at + 3 && end < source_.size() && source_[end] >= '0' && source_[end] <= '7';
           ++end)
        value = value << 3 | char32_t(source_[end] - '0');
    } else {
      text += '\\';
      return at;
    }
    append_utf8(text, value);
    return end;
  }

  std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace dflash::jinja
