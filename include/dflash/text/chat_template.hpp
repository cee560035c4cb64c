#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/io/in_quotes.hpp"

namespace dflash {

/// Who writes a conversation as text, and what of its messages is kept.
enum class ChatStyle {
  general,   // the tokenizer's template; role, content and tool calls
  thinking,  // also reasoning, names and tool call ids
  glm,       // as general, with thinking switched off unless the data says otherwise
  harmony,   // own rendering for gpt-oss
};

/// How an assistant's words are found in the text.
enum class SpanRule { general, longcat, glm, inkling };

/// What tells the turns of a conversation apart in rendered text.
struct ChatTemplate {
  std::string name;
  std::string assistant_header, user_header, end_of_turn;
  std::string system_prompt;  // for conversations without their own; empty: none
  ChatStyle style = ChatStyle::general;
  SpanRule span_rule = SpanRule::general;
  bool enable_thinking = false;           // tells the tokenizer's template to keep reasoning
  std::vector<std::string> ignored = {};  // texts that are not learned, wherever they stand
};

/// The templates with a name, as SpecForge has them.
inline const std::vector<ChatTemplate>& chat_templates() {
  using enum ChatStyle;
  static const std::string helpful = "You are a helpful assistant.";
  static const std::string llama_prompt =
      "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
      "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
      "toxic, dangerous, or illegal content. Please ensure that your responses are socially "
      "unbiased and positive in nature.\n\nIf a question does not make any sense, or is not "
      "factually coherent, explain why instead of answering something not correct. If you don't "
      "know the answer to a question, please don't share false information.";
  static const std::string chatml = "<|im_start|>assistant\n", chatml_user = "<|im_start|>user\n",
                           chatml_end = "<|im_end|>\n";
  static const std::string deepseek = "<｜Assistant｜>", deepseek_user = "<｜User｜>",
                           deepseek_end = "<｜end▁of▁sentence｜>";
  static const std::string kimi = "<|im_assistant|>assistant<|im_middle|>";
  static const std::vector<ChatTemplate> all = {
      {"llama3", "<|start_header_id|>assistant<|end_header_id|>\n\n",
       "<|start_header_id|>user<|end_header_id|>", "<|eot_id|>", llama_prompt},
      {"llama4", "<|header_start|>assistant<|header_end|>\n\n",
       "<|header_start|>user<|header_end|>", "<|eot|>", helpful},
      {"qwen", chatml, chatml_user, chatml_end, helpful},
      {"lfm", chatml, chatml_user, chatml_end, ""},
      {"phi3", "<|assistant|>\n", "<|user|>\n", "<|end|>\n", helpful},
      {"phi4", "<|im_start|>assistant<|im_sep|>", "<|im_start|>user<|im_sep|>", "<|im_end|>",
       helpful},
      {"phi4-mini", "<|assistant|>", "<|user|>", "<|end|>", helpful},
      {"gpt-oss-naive", "<|start|>assistant<|channel|>analysis<|message|>",
       "<|start|>user<|message|>", "<|end|>", ""},
      {"gpt-oss", "", "", "", "", harmony},
      {"deepseek-r1-distill", deepseek, deepseek_user, "", ""},
      {"qwen3-thinking", chatml, chatml_user, chatml_end, helpful, thinking, SpanRule::general,
       true},
      {"qwen3-instruct",
       chatml,
       chatml_user,
       chatml_end,
       helpful,
       general,
       SpanRule::general,
       false,
       {"<think>\n\n</think>\n\n"}},
      {"qwen3-next-thinking", chatml + "<think>\n", chatml_user, chatml_end, helpful, thinking,
       SpanRule::general, true},
      {"kimi-k2-thinking", kimi, chatml_user, "<|im_end|>", helpful, thinking, SpanRule::general,
       true},
      {"kimi-k2-instruct", kimi, chatml_user, "<|im_end|>", helpful},
      {"kimi-k3-thinking",
       "<|open|>message role=\"assistant\"<|sep|><|open|>think<|sep|>",
       "<|open|>message role=\"user\"<|sep|>",
       "<|end_of_msg|>",
       "",
       thinking,
       SpanRule::general,
       false,
       {"<|end_of_msg|>"}},
      {"deepseek-v3", deepseek, deepseek_user, deepseek_end, helpful},
      {"deepseek-v2", "Assistant: ", "User: ", deepseek_end, ""},
      {"ling-flash-2.0", "<role>ASSISTANT</role>", "<role>HUMAN</role>", "<|role_end|>", helpful},
      {"deepseek-v32", deepseek, deepseek_user, deepseek_end, "", thinking, SpanRule::general,
       true},
      {"glm-5.2",
       "<|assistant|><think>",
       "<|user|>",
       "<|user|>",
       "",
       glm,
       SpanRule::glm,
       false,
       {"<|user|>"}},
      {"gemma", "<start_of_turn>model\n", "<start_of_turn>user\n", "<end_of_turn>\n", helpful},
      {"longcat", " ASSISTANT:", " USER:", "</longcat_s>", helpful, general, SpanRule::longcat},
      {"longcat_xml", "<longcat_assistant>", "<longcat_user>", "</longcat_s>", helpful},
      {"qwen3.5", chatml + "<think>\n", chatml_user, chatml_end, "", thinking, SpanRule::general,
       true},
      {"inkling-thinking",
       "<|message_model|>",
       "<|message_user|>",
       "<|message_user|>",
       "",
       thinking,
       SpanRule::inkling,
       true,
       {"<|message_user|>", "<|message_tool|>", "<|message_system|>"}},
  };
  return all;
}

/// The template of that name. Error listing the names if there is none.
inline const ChatTemplate& named_chat_template(std::string_view name) {
  std::string names;
  for (const ChatTemplate& one : chat_templates()) {
    if (one.name == name) return one;
    names += (names.empty() ? "" : ", ") + one.name;
  }
  throw Error("there is no chat template " + in_quotes(name) + "; there are " + names);
}

}  // namespace dflash
