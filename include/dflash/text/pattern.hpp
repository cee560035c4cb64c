#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "dflash/core/error.hpp"
#include "dflash/io/in_quotes.hpp"
#include "dflash/text/newer_characters.hpp"
#include "dflash/text/utf8.hpp"

namespace dflash {

/// The working memory of one thread that matches patterns.
class PatternScratch {
 public:
  PatternScratch()
      : match_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        stack_(pcre2_jit_stack_create(std::size_t(32) << 10, std::size_t(16) << 20, nullptr)) {
    expects(match_ && context_ && stack_, "out of memory");
    pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
  }

 private:
  friend class Pattern;
  template <auto free>
  struct Free {
    template <class T>
    void operator()(T* p) const {
      free(p);
    }
  };
  std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>> match_;
  std::unique_ptr<pcre2_match_context, Free<pcre2_match_context_free>> context_;
  std::unique_ptr<pcre2_jit_stack, Free<pcre2_jit_stack_free>> stack_;
  std::string older_;
};

/// A compiled regular expression over UTF-8 whose classes are Unicode's.
class Pattern {
 public:
  /// Error that begins with `where` if the expression is none.
  Pattern(std::string_view expression, const std::string& where) {
    int error = 0;
    std::size_t offset = 0;
    // Multi-line because the tokenizers' own engine lets ^ and $ match at every line.
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, nullptr),
                pcre2_code_free);
    if (!code_) {
      PCRE2_UCHAR why[256];
      pcre2_get_error_message(error, why, sizeof why);
      throw Error(where + " is not a regular expression that can be used (" +
                  reinterpret_cast<const char*>(why) + " at " + std::to_string(offset) +
                  "): " + in_quotes(expression));
    }
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // may be unavailable: then interpreted
  }

  /// Calls visit(begin, end) for each match in valid UTF-8, from left to right; no empty match
  /// where the one before ends.
  template <class Visit>
  void for_each_match(std::string_view text, PatternScratch& scratch, Visit visit) const {
    const std::string_view seen = with_older_characters(text, scratch.older_);
    const auto subject = reinterpret_cast<PCRE2_SPTR>(seen.data());
    const std::size_t* bounds = pcre2_get_ovector_pointer(scratch.match_.get());
    std::size_t at = 0, last_end = std::size_t(-1);
    while (at <= seen.size()) {
      int found = pcre2_match(code_.get(), subject, seen.size(), at, PCRE2_NO_UTF_CHECK,
                              scratch.match_.get(), scratch.context_.get());
      if (found == PCRE2_ERROR_JIT_STACKLIMIT)
        found =
            pcre2_match(code_.get(), subject, seen.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                        scratch.match_.get(), scratch.context_.get());
      if (found == PCRE2_ERROR_NOMATCH) return;
      if (found < 0) {
        PCRE2_UCHAR why[256];
        pcre2_get_error_message(found, why, sizeof why);
        throw Error(std::string("a tokenizer's regular expression gave up on a text of ") +
                    std::to_string(text.size()) + " bytes: " + reinterpret_cast<const char*>(why));
      }
      const std::size_t begin = bounds[0], end = bounds[1];
      if (end < begin)
        throw Error("a tokenizer's regular expression ends a match before it begins");
      if (begin < end || begin != last_end) visit(begin, end);
      at = last_end = end;
      if (begin == end) at += at < seen.size() ? code_point_at(seen, at).size : 1;
    }
  }

 private:
  std::shared_ptr<pcre2_code> code_;
};

}  // namespace dflash
