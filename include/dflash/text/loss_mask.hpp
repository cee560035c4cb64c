#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/text/supervised_spans.hpp"
#include "dflash/text/tokenizer.hpp"

namespace dflash {

/// Counts the tokens of beginnings of one text, each tokenized on its own: stretches between added
/// tokens that several beginnings share are tokenized once.
class PrefixCounter {
 public:
  /// `text` is valid UTF-8; both arguments must outlive the counter.
  PrefixCounter(const Tokenizer& tokenizer, std::string_view text)
      : encoder_(tokenizer.encoder()), text_(text) {}

  index_t operator()(index_t bytes) {
    const std::string_view prefix = text_.substr(0, std::size_t(bytes));
    index_t count = 0;
    for (const auto& stretch : encoder_.stretches(prefix)) {
      const auto [known, is_new] = known_.try_emplace({stretch.begin, stretch.end}, 1);
      if (is_new && stretch.id < 0) {
        ids_.clear();
        encoder_.encode(prefix, stretch, ids_);
        known->second = index_t(ids_.size());
      }
      count += stretch.id < 0 ? known->second : 1;
    }
    return count;
  }

 private:
  const TextEncoder& encoder_;
  std::string_view text_;
  std::map<std::pair<std::size_t, std::size_t>, index_t> known_;
  std::vector<std::int32_t> ids_;
};

/// Which of the first `tokens` tokens of a rendered text are learned. A border of a span lies where
/// the text before it, tokenized on its own, ends: a token that crosses the border shifts it.
inline std::vector<std::uint8_t> loss_mask(const Tokenizer& tokenizer, std::string_view text,
                                           index_t tokens, const ChatTemplate& chat_template,
                                           bool last_turn_only) {
  std::vector<std::uint8_t> mask(std::size_t(tokens), 0);
  PrefixCounter count(tokenizer, text);
  const auto paint = [&](Range bytes, std::uint8_t value) {
    const index_t begin = std::min(count(bytes.begin), tokens);
    const index_t end = std::min(count(bytes.end), tokens);
    if (begin < end) std::fill(mask.begin() + begin, mask.begin() + end, value);
  };
  std::vector<Range> spans = supervised_spans(text, chat_template);
  if (last_turn_only && !spans.empty()) spans.erase(spans.begin(), spans.end() - 1);
  for (const Range& span : spans) paint(span, 1);
  for (const std::string& ignored : chat_template.ignored)
    for (std::size_t at = 0; (at = text.find(ignored, at)) != text.npos; at += ignored.size())
      paint({index_t(at), index_t(at + ignored.size())}, 0);
  return mask;
}

/// The same for gpt-oss, where a token is learned if all its characters lie inside a span.
inline std::vector<std::uint8_t> loss_mask_by_place(const std::vector<Tokenizer::Placed>& tokens,
                                                    std::string_view text,
                                                    const ChatTemplate& chat_template,
                                                    bool last_turn_only) {
  std::vector<std::uint8_t> mask(tokens.size(), 0);
  std::vector<Range> spans = supervised_spans(text, chat_template);
  if (last_turn_only && !spans.empty()) spans.erase(spans.begin(), spans.end() - 1);
  for (const Range& span : spans)
    for (std::size_t i = 0; i < tokens.size(); ++i)
      if (tokens[i].bytes.begin >= span.begin && tokens[i].bytes.end <= span.end) mask[i] = 1;
  return mask;
}

}  // namespace dflash
