#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/text/chat_template.hpp"
#include "dflash/text/unicode.hpp"
#include "dflash/text/utf8.hpp"

namespace dflash {

namespace detail {

/// How many bytes of what ends a turn stand at `at`; 0: none.
inline std::size_t terminator_size(std::string_view text, std::size_t at,
                                   const ChatTemplate& chat_template) {
  const std::string_view rest = text.substr(at);
  if (chat_template.span_rule == SpanRule::inkling) {
    for (const std::string_view end :
         {"<|message_user|>", "<|message_tool|>", "<|message_system|>"})
      if (rest.starts_with(end)) return end.size();
    return 0;
  }
  if (chat_template.span_rule != SpanRule::longcat)
    return rest.starts_with(chat_template.end_of_turn) ? chat_template.end_of_turn.size() : 0;
  constexpr std::string_view round = "[Round ", user = "] USER:";
  if (!rest.starts_with(round)) return 0;
  std::size_t end = round.size();
  while (end < rest.size()) {
    const CodePoint c = code_point_at(rest, end);
    if (!is_decimal_digit(c.value)) break;
    end += c.size;
  }
  return end > round.size() && rest.substr(end).starts_with(user) ? end + user.size() : 0;
}

/// The end of a text where a turn may end without its mark: SpecForge's regular expression also
/// stops in front of a newline that ends the text.
inline bool at_text_end(std::string_view text, std::size_t at) {
  return at == text.size() || (at + 1 == text.size() && text[at] == '\n');
}

}  // namespace detail

/// The bytes of a rendered text that an assistant wrote: each span begins behind an assistant
/// header, wherever that stands, and ends behind the next end of turn or at the end of the text.
inline std::vector<Range> supervised_spans(std::string_view text,
                                           const ChatTemplate& chat_template) {
  const bool harmony = chat_template.style == ChatStyle::harmony;
  const std::string_view header =
      harmony ? "<|start|>assistant" : std::string_view(chat_template.assistant_header);
  std::vector<Range> spans;
  for (std::size_t at = 0; (at = text.find(header, at)) != text.npos;) {
    at += header.size();
    constexpr std::string_view thought = "</think>";
    if (chat_template.span_rule == SpanRule::glm && text.substr(at).starts_with(thought))
      at += thought.size();
    const std::size_t begin = at;
    while (true) {
      const std::size_t size = harmony ? 0 : detail::terminator_size(text, at, chat_template);
      at += size;
      if (size > 0 || detail::at_text_end(text, at)) break;
      if (harmony && text.substr(at).starts_with("<|start|>user<|message|>")) break;
      ++at;
    }
    spans.push_back({index_t(begin), index_t(at)});
  }
  return spans;
}

}  // namespace dflash
