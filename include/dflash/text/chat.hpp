#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/data/sample.hpp"
#include "dflash/text/chat_renderer.hpp"
#include "dflash/text/chat_template.hpp"
#include "dflash/text/loss_mask.hpp"
#include "dflash/text/own_chat_template.hpp"
#include "dflash/text/tokenizer.hpp"

namespace dflash {

struct ChatOptions {
  index_t max_length = 2048;    // tokens of a sample; the rest is cut off
  bool last_turn_only = false;  // learn an assistant's last turn only
};

/// Conversations to tokens and loss masks, as SpecForge does it.
class Chat {
 public:
  explicit Chat(Tokenizer&& tokenizer) = delete;
  /// With the tokenizer's own template. The tokenizer must outlive it.
  explicit Chat(const Tokenizer& tokenizer)
      : tokenizer_(&tokenizer),
        renderer_(tokenizer),
        template_(own_chat_template(tokenizer, renderer_)) {}

  /// Rendered by the tokenizer's template if it has one, with the marks of this one.
  Chat(const Tokenizer& tokenizer, ChatTemplate chat_template)
      : Chat(tokenizer, std::move(chat_template), tokenizer.definition().chat_templates) {}

  /// Rendered by other templates than the tokenizer's: Jinja by name, "default" is the usual one.
  Chat(const Tokenizer& tokenizer, ChatTemplate chat_template,
       const std::map<std::string, std::string>& jinja)
      : tokenizer_(&tokenizer), renderer_(tokenizer, jinja), template_(std::move(chat_template)) {
    if (template_.style == ChatStyle::harmony) return;
    const bool ends = template_.span_rule == SpanRule::longcat ||
                      template_.span_rule == SpanRule::inkling || !template_.end_of_turn.empty();
    if (template_.assistant_header.empty() || !ends)
      throw Error("the chat template " + in_quotes(template_.name) +
                  " does not say where an assistant's turn begins and ends");
  }

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ChatTemplate& chat_template() const { return template_; }

  /// The text of a conversation.
  std::string render(const Conversation& conversation) const {
    return renderer_.render(conversation, template_, false);
  }

  /// The tokens of a conversation up to where the assistant is to speak next: an answer at its end
  /// is left out.
  std::vector<std::int32_t> prompt(Conversation conversation) const {
    jinja::List& messages = conversation.messages;
    while (!messages.empty() && is_answer(messages.back().map())) messages.pop_back();
    return tokenizer_->encode(renderer_.render(conversation, template_, true));
  }

  /// Tokens and mask of a conversation; the caller gives the id. No messages: no tokens.
  TokenizedSample tokenize(const Conversation& conversation, const ChatOptions& options) const {
    if (conversation.messages.empty()) return {};
    return tokenize_text(render(conversation), options);
  }

  /// Tokens and mask of text that was rendered before.
  TokenizedSample tokenize_text(std::string_view text, const ChatOptions& options) const {
    std::string valid;
    if (!is_utf8(text)) text = valid = lossy_utf8(text);
    TokenizedSample sample;
    if (template_.style == ChatStyle::harmony) {
      const auto placed = tokenizer_->encode_with_places(text);
      for (const auto& token : placed) sample.tokens.push_back(token.id);
      sample.loss_mask = loss_mask_by_place(placed, text, template_, options.last_turn_only);
      const auto size = std::min(placed.size(), std::size_t(options.max_length));
      sample.tokens.resize(size);
      sample.loss_mask.resize(size);
    } else {
      sample.tokens = tokenizer_->encode(text, false, options.max_length);
      sample.loss_mask = loss_mask(*tokenizer_, text, index_t(sample.tokens.size()), template_,
                                   options.last_turn_only);
    }
    return sample;
  }

 private:
  static bool is_answer(const jinja::Map& message) {
    const jinja::Map named = detail::with_usual_names(message);
    const std::string& role = detail::role_of(named);
    return role.starts_with("assistant") && role != "assistant_reasoning_effort";
  }

  const Tokenizer* tokenizer_;
  ChatRenderer renderer_;
  ChatTemplate template_;
};

/// The chat of a tokenizer: with the named template, or its own for an empty name.
inline Chat chat_for(const Tokenizer& tokenizer, std::string_view name) {
  return name.empty() ? Chat(tokenizer) : Chat(tokenizer, named_chat_template(name));
}

}  // namespace dflash
