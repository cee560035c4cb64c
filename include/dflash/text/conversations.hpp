#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/data/sample.hpp"
#include "dflash/io/in_quotes.hpp"
#include "dflash/text/chat.hpp"
#include "dflash/text/jinja/json_value.hpp"
#include "dflash/text/line_reader.hpp"

namespace dflash {

/// One line of a file of conversations: messages to render, text that was rendered, or tokens.
struct ConversationRow {
  enum class Kind { messages, text, tokens };

  std::string id;  // the line's number if the data has none
  Kind kind = Kind::messages;
  Conversation conversation;
  std::string text;
  TokenizedSample sample;  // as it stands in the data
};

/// Reads JSON lines: `conversations` (or `messages`) with role/content or from/value, `text`, or
/// `input_ids` and `loss_mask`; each with an optional `id`, the first also with `tools` and
/// whatever else the tokenizer's template may ask for. Errors name the file and the line.
class ConversationReader {
 public:
  /// `is_preformatted`: every line must have `text`.
  explicit ConversationReader(const std::filesystem::path& path, bool is_preformatted = false)
      : lines_(path), is_preformatted_(is_preformatted) {}

  /// The next line that is not blank, or nothing at the end.
  std::optional<ConversationRow> next() {
    while (lines_.next(line_)) {
      if (lines_.number() == 1 && line_.starts_with("\xEF\xBB\xBF")) line_.erase(0, 3);
      if (line_.find_first_not_of(" \t\r") == std::string::npos) continue;
      try {
        return read(parse());
      } catch (const jinja::Failure& failure) {
        fail(failure.what);
      }
    }
    return std::nullopt;
  }

  /// Of the line read last, counted from 1.
  index_t line() const { return lines_.number(); }

  /// Throws an Error that names the file and the line read last.
  [[noreturn]] void fail(const std::string& why) const {
    throw Error(lines_.path().string() + ", line " + std::to_string(line()) + ": " + why);
  }

 private:
  using Json = nlohmann::ordered_json;

  Json parse() const {
    try {
      return Json::parse(line_);
    } catch (const nlohmann::json::parse_error& error) {
      fail("is not valid JSON at character " + std::to_string(error.byte) +
           (error.byte > line_.size() ? ", where it ends early" : ""));
    } catch (const nlohmann::json::exception&) {
      fail("is not valid JSON: a number overflows");
    }
  }

  ConversationRow read(const Json& json) const {
    if (!json.is_object()) fail("holds no JSON object");
    ConversationRow row;
    row.id = read_id(json);
    const bool has_text = json.contains("text");
    if (is_preformatted_ && !has_text) fail("has no field \"text\", but preformatted text is read");
    if (json.contains("input_ids") && !is_preformatted_)
      read_tokens(json, row);
    else if (const Json* messages = is_preformatted_ ? nullptr : find_messages(json))
      read_messages(json, *messages, row);
    else if (has_text)
      read_text(json, row);
    else
      fail("has neither \"conversations\", \"messages\", \"text\" nor \"input_ids\"");
    return row;
  }

  std::string read_id(const Json& json) const {
    const auto id = json.find("id");
    if (id == json.end() || id->is_null()) return std::to_string(line());
    return id->is_string() ? id->get<std::string>() : id->dump();
  }

  static const Json* find_messages(const Json& json) {
    for (const char* name : {"conversations", "messages"})
      if (const auto found = json.find(name); found != json.end()) return &*found;
    return nullptr;
  }

  void read_messages(const Json& json, const Json& messages, ConversationRow& row) const {
    if (!messages.is_array() && !messages.is_null())
      fail("field \"conversations\" is not a list of messages");
    for (const Json& message : messages) {
      if (!message.is_object()) fail("field \"conversations\" has a message that is no object");
      row.conversation.messages.push_back(jinja::value_of(message));
    }
    for (const auto& [key, value] : json.items()) {
      if (key == "id" || key == "conversations" || key == "messages") continue;
      if (key == "tools")
        row.conversation.tools = read_tools(value);
      else
        row.conversation.variables.append(key, jinja::value_of(value));
    }
  }

  /// A list, or a text that holds one as JSON.
  jinja::Value read_tools(const Json& json) const {
    jinja::Value tools = jinja::value_of(json);
    if (tools.is_string()) tools = detail::parsed_or(tools.string(), jinja::Undefined{});
    if (!tools.is_list() && !tools.is_none()) fail("field \"tools\" is not a list");
    return tools;
  }

  void read_text(const Json& json, ConversationRow& row) const {
    const Json& text = json["text"];
    if (!text.is_string()) fail("field \"text\" is not a string");
    row.kind = ConversationRow::Kind::text;
    row.text = text.get<std::string>();
  }

  void read_tokens(const Json& json, ConversationRow& row) const {
    row.kind = ConversationRow::Kind::tokens;
    const Json& ids = json["input_ids"];
    const auto mask = json.find("loss_mask");
    if (!ids.is_array()) fail("field \"input_ids\" is not a list of token ids");
    if (mask == json.end() || !mask->is_array()) fail("field \"loss_mask\" is not a list");
    if (ids.size() != mask->size())
      fail("has " + std::to_string(ids.size()) + " \"input_ids\" but " +
           std::to_string(mask->size()) + " entries in \"loss_mask\"");
    for (std::size_t i = 0; i < ids.size(); ++i) {
      constexpr auto most = std::uint64_t(std::numeric_limits<std::int32_t>::max());
      if (!ids[i].is_number_unsigned() || ids[i].get<std::uint64_t>() > most)
        fail("\"input_ids\"[" + std::to_string(i) + "] is " + ids[i].dump() +
             ", which is no token id");
      const Json& flag = (*mask)[i];
      if (!flag.is_boolean() && flag != 0 && flag != 1)
        fail("\"loss_mask\"[" + std::to_string(i) + "] is " + flag.dump() +
             " where 0 or 1 is expected");
      row.sample.tokens.push_back(ids[i].get<std::int32_t>());
      row.sample.loss_mask.push_back(flag == 1 || flag == true ? 1 : 0);
    }
  }

  LineReader lines_;
  bool is_preformatted_;
  std::string line_;
};

struct SampleOptions : ChatOptions {
  bool is_preformatted = false;  // every line has `text`, ready to be tokenized
};

/// Reads a file of conversations as tokens and loss masks, one sample at a time.
class SampleReader {
 public:
  /// The chat must outlive the reader.
  SampleReader(const std::filesystem::path& path, const Chat& chat, SampleOptions options)
      : reader_(path, options.is_preformatted), chat_(&chat), options_(options) {
    expects(options.max_length > 0, "max_length is positive");
  }

  /// The next sample, empty if its conversation is; nothing at the end. Error naming the file and
  /// the line.
  std::optional<TokenizedSample> next() {
    std::optional<ConversationRow> row = reader_.next();
    if (!row) return std::nullopt;
    TokenizedSample sample;
    try {
      sample = tokenize(*row);
    } catch (const Error& error) {
      reader_.fail(error.what());
    }
    sample.id = std::move(row->id);
    return sample;
  }

  index_t line() const { return reader_.line(); }

 private:
  TokenizedSample tokenize(ConversationRow& row) const {
    if (row.kind == ConversationRow::Kind::messages)
      return chat_->tokenize(row.conversation, options_);
    if (row.kind == ConversationRow::Kind::text) return chat_->tokenize_text(row.text, options_);
    TokenizedSample sample = std::move(row.sample);
    const auto size = std::min(sample.tokens.size(), std::size_t(options_.max_length));
    sample.tokens.resize(size);
    sample.loss_mask.resize(size);
    return sample;
  }

  ConversationReader reader_;
  const Chat* chat_;
  SampleOptions options_;
};

/// Calls use(sample) for each sample of a file.
template <class Use>
void for_each_sample(const std::filesystem::path& path, const Chat& chat,
                     const SampleOptions& options, Use use) {
  SampleReader reader(path, chat, options);
  while (std::optional<TokenizedSample> sample = reader.next()) use(std::move(*sample));
}

}  // namespace dflash
