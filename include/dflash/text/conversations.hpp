#pragma once

#include <cstdint>
#include <filesystem>
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
        return read(jinja::parse_json(line_));
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
  ConversationRow read(const jinja::Value& line) const {
    if (!line.is_map()) fail("holds no JSON object");
    const jinja::Map& fields = line.map();
    ConversationRow row;
    row.id = read_id(fields);
    const jinja::Value* text = fields.find("text");
    if (is_preformatted_) {
      if (text == nullptr) fail("has no field \"text\", but preformatted text is read");
      read_text(*text, row);
    } else if (const jinja::Value* ids = fields.find("input_ids")) {
      read_tokens(*ids, fields.find("loss_mask"), row);
    } else if (const jinja::Value* messages = find_messages(fields)) {
      read_messages(fields, *messages, row);
    } else if (text != nullptr) {
      read_text(*text, row);
    } else {
      fail("has neither \"conversations\", \"messages\", \"text\" nor \"input_ids\"");
    }
    return row;
  }

  std::string read_id(const jinja::Map& fields) const {
    const jinja::Value* id = fields.find("id");
    if (id == nullptr || id->is_none()) return std::to_string(line());
    return id->is_string() ? id->string() : jinja::json_text(*id);
  }

  static const jinja::Value* find_messages(const jinja::Map& fields) {
    const jinja::Value* found = fields.find("conversations");
    return found != nullptr ? found : fields.find("messages");
  }

  void read_messages(const jinja::Map& fields, const jinja::Value& messages,
                     ConversationRow& row) const {
    if (!messages.is_list() && !messages.is_none())
      fail("field \"conversations\" is not a list of messages");
    if (messages.is_list()) row.conversation.messages = messages.list();
    for (const jinja::Value& message : row.conversation.messages)
      if (!message.is_map()) fail("field \"conversations\" has a message that is no object");
    for (const auto& [key, value] : fields) {
      if (key == "id" || key == "conversations" || key == "messages") continue;
      if (key == "tools")
        row.conversation.tools = read_tools(value);
      else
        row.conversation.variables.append(key, value);
    }
  }

  /// A list, or a text that holds one as JSON.
  jinja::Value read_tools(const jinja::Value& given) const {
    const jinja::Value tools =
        given.is_string() ? detail::parsed_or(given.string(), jinja::Undefined{}) : given;
    if (!tools.is_list() && !tools.is_none()) fail("field \"tools\" is not a list");
    return tools;
  }

  void read_text(const jinja::Value& text, ConversationRow& row) const {
    if (!text.is_string()) fail("field \"text\" is not a string");
    row.kind = ConversationRow::Kind::text;
    row.text = text.string();
  }

  void read_tokens(const jinja::Value& ids, const jinja::Value* mask, ConversationRow& row) const {
    row.kind = ConversationRow::Kind::tokens;
    if (!ids.is_list()) fail("field \"input_ids\" is not a list of token ids");
    if (mask == nullptr || !mask->is_list()) fail("field \"loss_mask\" is not a list");
    const std::size_t size = ids.list().size();
    if (size != mask->list().size())
      fail("has " + std::to_string(size) + " \"input_ids\" but " +
           std::to_string(mask->list().size()) + " entries in \"loss_mask\"");
    for (std::size_t i = 0; i < size; ++i) {
      const jinja::Value &id = ids.list()[i], &flag = mask->list()[i];
      if (!id.is_integer() || !std::in_range<std::int32_t>(id.integer()) || id.integer() < 0)
        fail("\"input_ids\"[" + std::to_string(i) + "] is " + jinja::json_text(id) +
             ", which is no token id");
      if (!jinja::equal(flag, 0) && !jinja::equal(flag, 1))
        fail("\"loss_mask\"[" + std::to_string(i) + "] is " + jinja::json_text(flag) +
             " where 0 or 1 is expected");
      row.sample.tokens.push_back(std::int32_t(id.integer()));
      row.sample.loss_mask.push_back(jinja::truth(flag) ? 1 : 0);
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
