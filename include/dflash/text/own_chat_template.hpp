#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "dflash/core/error.hpp"
#include "dflash/text/chat_renderer.hpp"

namespace dflash {

namespace detail {

/// Finds out how a tokenizer's template marks an assistant's turns by rendering small
/// conversations and comparing.
class ChatTemplateProbe {
 public:
  ChatTemplateProbe(const Tokenizer& tokenizer, const ChatRenderer& renderer)
      : tokenizer_(tokenizer), renderer_(renderer) {
    probed_.style = ChatStyle::thinking;
  }

  ChatTemplate run() {
    const std::string one = render(2, false), two = render(4, false);
    probed_.name = "own";
    probed_.assistant_header = header(one, two);
    probed_.end_of_turn = end_of_turn(one, two);
    return probed_;
  }

 private:
  static constexpr std::string_view words[4] = {"Quokka?", "Numbat.", "Bilby?", "Potoroo."};

  [[noreturn]] void fail(const char* what) const {
    throw Error("the chat template of " + tokenizer_.definition().source +
                " does not tell where an assistant's turn " + what +
                ": choose one of the named templates");
  }

  /// The first `count` of the words as user, assistant, user, assistant.
  std::string render(int count, bool generate) const {
    Conversation conversation;
    for (int i = 0; i < count; ++i)
      conversation.messages.emplace_back(
          jinja::Map{{"role", i % 2 == 0 ? "user" : "assistant"}, {"content", words[i]}});
    std::string text = renderer_.render(conversation, probed_, generate);
    for (int i = 0; i < count; ++i)
      if (text.find(words[i]) == std::string::npos) fail("begins");
    return text;
  }

  std::string without_eos(const std::string& text) const {
    const std::string eos = tokenizer_.special_token("eos_token").value_or("");
    return !eos.empty() && text.ends_with(eos) ? text.substr(0, text.size() - eos.size()) : text;
  }

  /// What both begin with, in whole characters.
  static std::string_view common(std::string_view a, std::string_view b) {
    std::size_t n = 0;
    while (n < std::min(a.size(), b.size()) && a[n] == b[n]) ++n;
    while (n > 0 && n < a.size() && (static_cast<unsigned char>(a[n]) & 0xC0) == 0x80) --n;
    return a.substr(0, n);
  }

  std::string header(const std::string& one, const std::string& two) const {
    const std::string open = render(1, true), closed = render(1, false);
    // Some templates end a text that waits for no answer with the end-of-text token.
    std::size_t begin = open.size();
    for (const std::string& before : {closed, without_eos(closed)})
      if (begin == open.size() && open.starts_with(before)) begin = before.size();
    // Others, such as [INST] ones, add nothing for an answer: the user's end is the header.
    if (begin == open.size()) begin = open.find(words[0]) + words[0].size();
    std::string_view header = std::string_view(open).substr(begin);
    if (!one.starts_with(open.substr(0, begin)) || !two.starts_with(open.substr(0, begin)))
      fail("begins");
    // A prompt may go on to open a thought that answers in the data do not have.
    header = common(header, before_word(one.substr(begin), 1));
    header = common(header, before_word(two.substr(begin), 1));
    const std::size_t second = two.find(words[2]) + words[2].size();
    const std::string later(before_word(two.substr(second), 3));
    while (!header.empty() && later.find(header) == std::string::npos)
      header = header.substr(0, code_point_before(header, header.size()));
    if (jinja::strip(header, jinja::None(), true, true).empty()) fail("begins");
    return std::string(header);
  }

  static std::string before_word(const std::string& text, int word) {
    return text.substr(0, text.find(words[word]));
  }

  std::string end_of_turn(const std::string& one, const std::string& two) const {
    const std::string last = one.substr(one.find(words[1]) + words[1].size());
    const std::size_t after = two.find(words[1]) + words[1].size();
    const std::string inner = two.substr(after, two.find(words[2], after) - after);
    // A template may leave the end out of the last turn; then it mostly is the same as a user's.
    const std::size_t user = two.find(words[0]) + words[0].size();
    const std::string user_end = two.substr(user, two.find(probed_.assistant_header, user) - user);
    for (const std::string& end : {last, without_eos(last), user_end})
      if (!end.empty() && inner.starts_with(end)) return end;
    const auto a = tokenizer_.encode(last), b = tokenizer_.encode(inner);
    const auto differ = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
    const std::string end = tokenizer_.decode({a.begin(), differ});
    if (end.empty() || !inner.starts_with(end)) fail("ends");
    return end;
  }

  const Tokenizer& tokenizer_;
  const ChatRenderer& renderer_;
  ChatTemplate probed_;
};

}  // namespace detail

/// The marks of the tokenizer's own template, without a system prompt. Error naming the tokenizer
/// if it has no template or one whose marks cannot be told.
inline ChatTemplate own_chat_template(const Tokenizer& tokenizer, const ChatRenderer& renderer) {
  if (!renderer.has_own_template())
    throw Error(tokenizer.definition().source +
                " comes with no chat template: choose one of the named templates");
  return detail::ChatTemplateProbe(tokenizer, renderer).run();
}

}  // namespace dflash
