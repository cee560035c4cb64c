#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "dflash/core/error.hpp"
#include "dflash/io/in_quotes.hpp"
#include "dflash/text/chat_template.hpp"
#include "dflash/text/jinja.hpp"
#include "dflash/text/messages.hpp"
#include "dflash/text/tokenizer.hpp"

namespace dflash {

/// A conversation as it stands in the data.
struct Conversation {
  jinja::List messages;  // maps with role and content, or from and value
  jinja::Value tools;    // a list of descriptions, or none
  jinja::Map variables;  // what else the tokenizer's template may ask for: enable_thinking ...
};

/// Writes conversations as text: with the tokenizer's own template, or if it has none with the
/// headers of a named one.
class ChatRenderer {
 public:
  /// The tokenizer must outlive it.
  explicit ChatRenderer(const Tokenizer& tokenizer)
      : ChatRenderer(tokenizer, tokenizer.definition().chat_templates) {}
  /// With other templates than the tokenizer's: Jinja by name, "default" is the usual one.
  ChatRenderer(const Tokenizer& tokenizer, const std::map<std::string, std::string>& templates)
      : tokenizer_(&tokenizer) {
    for (const auto& [name, source] : templates) {
      const std::string label = "chat template of " + tokenizer.definition().source +
                                (name == "default" ? "" : " for " + in_quotes(name));
      if (name == "default") default_ = std::make_shared<const JinjaTemplate>(source, label);
      if (name == "tool_use") tool_use_ = std::make_shared<const JinjaTemplate>(source, label);
    }
  }

  bool has_own_template() const { return default_ != nullptr; }

  /// The text of a conversation, up to where the assistant is to speak if `generate`.
  std::string render(const Conversation& conversation, const ChatTemplate& chat_template,
                     bool generate) const {
    if (chat_template.style == ChatStyle::harmony)
      return render_harmony(conversation.messages) + (generate ? "<|start|>assistant" : "");
    jinja::List messages = usable_messages(conversation.messages, chat_template);
    if (!default_) return render_plainly(messages, chat_template, generate);
    const bool has_tools = jinja::truth(conversation.tools);
    jinja::Map variables = conversation.variables;
    for (const auto& [role, text] : tokenizer_->definition().special_tokens)
      variables.set(role, text);
    variables.set("messages", std::move(messages));
    variables.set("tools", has_tools ? conversation.tools : jinja::Value());
    if (!variables.contains("documents")) variables.set("documents", jinja::None());
    variables.set("add_generation_prompt", generate);
    if (chat_template.enable_thinking) variables.set("enable_thinking", true);
    if (chat_template.style == ChatStyle::glm && !variables.contains("enable_thinking"))
      variables.set("enable_thinking", false);
    return (has_tools && tool_use_ ? tool_use_ : default_)->render(std::move(variables));
  }

 private:
  static const std::string& content_of(const jinja::Map& message) {
    const jinja::Value& content = *message.find("content");
    if (!content.is_string())
      throw Error("a message's content is of type " + jinja::type_name(content) +
                  ", which only a tokenizer with a chat template of its own can read");
    return content.string();
  }

  /// For tokenizers without a template, as SpecForge does it: user turns have no end, tool messages
  /// do not appear.
  std::string render_plainly(const jinja::List& messages, const ChatTemplate& chat_template,
                             bool generate) const {
    std::string text = tokenizer_->special_token("bos_token").value_or("");
    for (const jinja::Value& message : messages) {
      const std::string& role = detail::role_of(message.map());
      if (role == "system") text += content_of(message.map());
      if (role == "user") text += chat_template.user_header + content_of(message.map());
      if (role == "assistant")
        text +=
            chat_template.assistant_header + content_of(message.map()) + chat_template.end_of_turn;
    }
    return text + (generate ? chat_template.assistant_header : "");
  }

  static std::string render_harmony(const jinja::List& messages) {
    const auto turn = [](const std::string& who, const std::string& what) {
      return "<|start|>" + who + "<|message|>" + what + "<|end|>";
    };
    const auto effort = [&turn](const std::string& level) {
      return turn("system",
                  "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: "
                  "2024-06\nCurrent date: 2025-06-28\n\nReasoning: " +
                      jinja::lower(level) +
                      "\n\n# Valid channels: analysis, commentary, final. Channel must be included "
                      "for every message.");
    };
    std::string text;
    bool first = true;
    for (const jinja::Value& given : messages) {
      const jinja::Map message = detail::with_usual_names(given.map());
      const std::string& role = detail::role_of(message);
      const std::string& content = content_of(message);
      const bool is_system = role == "system" || role == "assistant_reasoning_effort";
      if (std::exchange(first, false) && !is_system) text = effort("low");
      if (role == "system")  // replaces what came before, as does the effort
        text = turn("system", content);
      else if (role == "assistant_reasoning_effort")
        text = effort(content);
      else if (role == "user")
        text += turn("user", content);
      else if (role == "assistant_analysis" || role == "assistant_commentary" ||
               role == "assistant_final")
        text += turn("assistant<|channel|>" + role.substr(10), content);
      else
        throw Error("the chat template \"gpt-oss\" knows no role " + in_quotes(role));
    }
    return text;
  }

  const Tokenizer* tokenizer_;
  std::shared_ptr<const JinjaTemplate> default_, tool_use_;
};

}  // namespace dflash
