#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "dflash/text/chat_template.hpp"
#include "dflash/text/jinja/json_value.hpp"
#include "dflash/text/jinja/value.hpp"

namespace dflash {

namespace detail {

/// The value of text that is JSON, or the fallback.
inline jinja::Value parsed_or(const std::string& text, jinja::Value fallback) {
  try {
    return jinja::parse_json(text);
  } catch (const jinja::Failure&) {
    return fallback;
  }
}

inline jinja::Value field_or(const jinja::Map& map, std::string_view name, jinja::Value fallback) {
  const jinja::Value* found = map.find(name);
  return found != nullptr ? *found : std::move(fallback);
}

/// Tool calls with the fields that templates know, and arguments as values.
inline jinja::Value clean_tool_calls(const jinja::List& calls) {
  jinja::List clean;
  for (const jinja::Value& call : calls) {
    if (!call.is_map()) continue;
    jinja::Map out{{"id", field_or(call.map(), "id", "")},
                   {"type", field_or(call.map(), "type", "function")}};
    const jinja::Value function = field_or(call.map(), "function", jinja::Map());
    if (function.is_map()) {
      jinja::Value arguments = field_or(function.map(), "arguments", jinja::Map());
      if (arguments.is_string()) arguments = parsed_or(arguments.string(), jinja::Map());
      out.append("function", jinja::Map{{"name", field_or(function.map(), "name", "")},
                                        {"arguments", std::move(arguments)}});
    }
    clean.emplace_back(std::move(out));
  }
  return clean;
}

/// `from` and `value` as `role` and `content`, `human` and `gpt` as `user` and `assistant`.
inline jinja::Map with_usual_names(const jinja::Map& message) {
  const jinja::Value given = field_or(message, "role", field_or(message, "from", ""));
  std::string role = given.is_string() ? given.string() : "";
  if (role == "human") role = "user";
  if (role == "gpt") role = "assistant";
  jinja::Value content = field_or(message, "content", "");
  if (!jinja::truth(content)) content = field_or(message, "value", "");
  if (!jinja::truth(content)) content = "";
  jinja::Map out = message;
  out.set("role", role);
  out.set("content", std::move(content));
  return out;
}

inline jinja::Map with_known_fields(const jinja::Map& message, ChatStyle style) {
  jinja::Map out;
  for (const auto& [key, value] : message) {
    const bool general = key == "role" || key == "content" || key == "tool_calls";
    const bool thinking = key == "reasoning_content" || key == "name" || key == "tool_call_id";
    if (!general && !(thinking && style == ChatStyle::thinking)) continue;
    jinja::Value kept = value;
    if (key == "tool_calls" && kept.is_string()) {
      kept = parsed_or(kept.string(), jinja::Undefined{});
      if (kept.is_undefined()) continue;
    }
    if (key == "tool_calls" && kept.is_list()) kept = clean_tool_calls(kept.list());
    out.append(key, std::move(kept));
  }
  return out;
}

inline const std::string& role_of(const jinja::Map& message) {
  return message.find("role")->string();
}

}  // namespace detail

/// A conversation as templates get it: usual names; the system message of the data, or else the
/// template's; nothing before the first user message; nothing from the first assistant message on
/// that answers neither user nor tool, or tool message that follows neither assistant nor tool.
/// Each message is a map.
inline jinja::List usable_messages(const jinja::List& conversation,
                                   const ChatTemplate& chat_template) {
  jinja::List messages;
  const std::string* previous = nullptr;
  std::vector<jinja::Map> named;
  for (const jinja::Value& message : conversation)
    named.push_back(detail::with_usual_names(message.map()));
  std::size_t at = 0;
  if (!named.empty() && detail::role_of(named[0]) == "system") {
    messages.emplace_back(jinja::Map{{"role", "system"}, {"content", *named[0].find("content")}});
    ++at;
  } else if (!named.empty() && !chat_template.system_prompt.empty()) {
    messages.emplace_back(jinja::Map{{"role", "system"}, {"content", chat_template.system_prompt}});
  }
  while (at < named.size() && detail::role_of(named[at]) != "user") ++at;
  for (; at < named.size(); ++at) {
    const std::string& role = detail::role_of(named[at]);
    if (previous != nullptr) {
      if (role == "tool" && *previous != "assistant" && *previous != "tool") break;
      if (role == "assistant" && *previous != "user" && *previous != "tool") break;
    }
    messages.emplace_back(detail::with_known_fields(named[at], chat_template.style));
    previous = &role;
  }
  return messages;
}

}  // namespace dflash
