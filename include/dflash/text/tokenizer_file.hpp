#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "dflash/core/error.hpp"
#include "dflash/io/in_quotes.hpp"
#include "dflash/io/json_file.hpp"
#include "dflash/text/tokenizer_definition.hpp"

namespace dflash {

namespace detail {

/// Reads `tokenizer.json`. Every error names the file and the field.
class TokenizerFile {
 public:
  TokenizerFile(const std::filesystem::path& path, TokenizerDefinition& definition)
      : path_(path), json_(read_json(path)), out_(definition) {
    if (!json_.is_object()) throw Error(path_.string() + " holds no JSON object");
    read_model();
    read_added_tokens();
    if (const auto* normalizer = find_field(json_, "normalizer"))
      read_normalizer(*normalizer, "normalizer", 0);
    if (const auto* steps = find_field(json_, "pre_tokenizer"))
      read_pre_tokenizer(*steps, "pre_tokenizer", 0);
    if (!byte_level_)
      throw Error(path_.string() +
                  ": field \"pre_tokenizer\" has no \"ByteLevel\", but only byte-level tokenizers "
                  "can be read");
    if (const auto* processor = find_field(json_, "post_processor"))
      read_post_processor(*processor, "post_processor", 0);
  }

 private:
  using Json = nlohmann::json;
  static constexpr int deepest = 16;

  [[noreturn]] void fail(const std::string& field, const std::string& why) const {
    throw Error(path_.string() + ": field " + in_quotes(field) + " " + why);
  }
  [[noreturn]] void fail_type(const std::string& field, const std::string& type,
                              const char* known) const {
    fail(field + ".type", "is " + in_quotes(type) + ", which cannot be read (" + known + ")");
  }
  std::string where(const std::string& field) const {
    return path_.string() + ": field " + in_quotes(field);
  }
  template <class T>
  T get(const Json& object, const std::string& prefix, const char* name) const {
    const Json* found = find_field(object, name);
    if (found == nullptr) fail(prefix + "." + name, "is missing");
    return typed<T>(*found, prefix + "." + name, path_);
  }
  template <class T>
  T get(const Json& object, const std::string& prefix, const char* name, T fallback) const {
    const Json* found = find_field(object, name);
    return found == nullptr ? fallback : typed<T>(*found, prefix + "." + name, path_);
  }
  /// Calls read(entry, "field[i]") for each entry of a list.
  template <class Read>
  void each(const Json& object, const std::string& prefix, const char* name, Read read) const {
    const std::string field = prefix.empty() ? name : prefix + "." + name;
    const Json* list = find_field(object, name);
    if (list == nullptr || !list->is_array()) fail(field, "is not a list");
    for (std::size_t i = 0; i < list->size(); ++i)
      read((*list)[i], field + "[" + std::to_string(i) + "]");
  }

  void read_model() {
    const Json* model = find_field(json_, "model");
    if (model == nullptr || !model->is_object()) fail("model", "is not an object");
    const auto type = get<std::string>(*model, "model", "type", "BPE");
    if (type != "BPE") fail_type("model", type, "only BPE is");
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!get<std::string>(*model, "model", name, "").empty())
        fail(std::string("model.") + name, "is set, which byte-level tokenizers do not use");
    if (get<double>(*model, "model", "dropout", 0.0) != 0)
      fail("model.dropout", "is not 0: encoding would be random");
    if (get<bool>(*model, "model", "byte_fallback", false))
      fail("model.byte_fallback", "is true, which byte-level tokenizers do not use");
    out_.options.ignore_merges = get<bool>(*model, "model", "ignore_merges", false);
    out_.options.fuse_unknown = get<bool>(*model, "model", "fuse_unk", false);
    if (find_field(*model, "unk_token") != nullptr)
      out_.options.unknown = get<std::string>(*model, "model", "unk_token");

    const Json* vocabulary = find_field(*model, "vocab");
    if (vocabulary == nullptr || !vocabulary->is_object()) fail("model.vocab", "is not an object");
    for (const auto& [token, id] : vocabulary->items())
      out_.vocabulary.emplace(token, read_id(id, "model.vocab"));
    each(*model, "model", "merges", [&](const Json& merge, const std::string& field) {
      if (merge.is_array()) {
        const auto pair = typed<std::vector<std::string>>(merge, field, path_);
        if (pair.size() != 2) fail(field, "is not a pair");
        out_.merges.emplace_back(pair[0], pair[1]);
      } else {
        const auto text = typed<std::string>(merge, field, path_);
        const std::size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
          fail(field, "is " + in_quotes(text) + ", not two tokens with a space between");
        out_.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
      }
    });
  }

  std::int32_t read_id(const Json& json, const std::string& field) const {
    const auto id = typed<std::int32_t>(json, field, path_);
    if (id < 0) fail(field, "has the negative id " + std::to_string(id));
    return id;
  }

  void read_added_tokens() {
    if (find_field(json_, "added_tokens") == nullptr) return;
    each(json_, "", "added_tokens", [&](const Json& token, const std::string& field) {
      AddedToken added;
      added.id = get<std::int32_t>(token, field, "id");
      if (added.id < 0) fail(field + ".id", "is negative");
      added.text = get<std::string>(token, field, "content");
      added.single_word = get<bool>(token, field, "single_word", false);
      added.strip_left = get<bool>(token, field, "lstrip", false);
      added.strip_right = get<bool>(token, field, "rstrip", false);
      added.normalized = get<bool>(token, field, "normalized", true);
      added.special = get<bool>(token, field, "special", false);
      out_.added_tokens.push_back(std::move(added));
    });
  }

  void read_normalizer(const Json& json, const std::string& field, int depth) {
    const auto type = get<std::string>(json, field, "type");
    if (type == "NFC") {
      out_.normalizers.push_back(NormalForm::nfc);
    } else if (type == "NFD") {
      out_.normalizers.push_back(NormalForm::nfd);
    } else if (type == "NFKC") {
      out_.normalizers.push_back(NormalForm::nfkc);
    } else if (type == "NFKD") {
      out_.normalizers.push_back(NormalForm::nfkd);
    } else if (type == "Sequence" && depth < deepest) {
      each(json, field, "normalizers", [&](const Json& inner, const std::string& name) {
        read_normalizer(inner, name, depth + 1);
      });
    } else {
      fail_type(field, type, "NFC, NFD, NFKC, NFKD and Sequence are");
    }
  }

  void read_pre_tokenizer(const Json& json, const std::string& field, int depth) {
    const auto type = get<std::string>(json, field, "type");
    PreTokenizerStep step;
    if (type == "Sequence" && depth < deepest) {
      each(json, field, "pretokenizers", [&](const Json& inner, const std::string& name) {
        read_pre_tokenizer(inner, name, depth + 1);
      });
      return;
    } else if (type == "ByteLevel") {
      byte_level_ = true;
      step.prefix_space = get<bool>(json, field, "add_prefix_space", true);
      if (get<bool>(json, field, "use_regex", true))
        step.pattern.emplace(
            R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
            where(field));
    } else if (type == "Digits") {
      step.pattern.emplace(
          get<bool>(json, field, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)",
          where(field));
    } else if (type == "Split") {
      const std::string name = field + ".pattern";
      if (find_field(json, "pattern.Regex") != nullptr) {
        step.pattern.emplace(get<std::string>(json, field, "pattern.Regex"), where(name));
      } else {
        std::string literal = "\\Q";  // a quotation ends at the next \E
        for (const char c : get<std::string>(json, field, "pattern.String")) {
          literal += c;
          if (literal.ends_with("\\E")) literal.replace(literal.size() - 1, 1, "\\E\\\\E\\Q");
        }
        step.pattern.emplace(literal + "\\E", where(name));
      }
      step.behavior = read_behavior(get<std::string>(json, field, "behavior"), field);
      step.invert = get<bool>(json, field, "invert", false);
    } else {
      fail_type(field, type, "ByteLevel, Split, Digits and Sequence are");
    }
    out_.pre_tokenizer.push_back(std::move(step));
  }

  SplitBehavior read_behavior(const std::string& name, const std::string& field) const {
    if (name == "Isolated") return SplitBehavior::isolated;
    if (name == "Removed") return SplitBehavior::removed;
    if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
    if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
    if (name == "Contiguous") return SplitBehavior::contiguous;
    fail(field + ".behavior", "is " + in_quotes(name) + ", which is no way to split");
  }

  void read_post_processor(const Json& json, const std::string& field, int depth) {
    const auto type = get<std::string>(json, field, "type");
    if (type == "ByteLevel") return;  // trims offsets only
    if (type == "Sequence" && depth < deepest) {
      each(json, field, "processors", [&](const Json& inner, const std::string& name) {
        read_post_processor(inner, name, depth + 1);
      });
    } else if (type == "TemplateProcessing") {
      std::vector<std::int32_t> before, after;
      bool seen_text = false;
      each(json, field, "single", [&](const Json& part, const std::string& name) {
        if (find_field(part, "Sequence") != nullptr) {
          if (std::exchange(seen_text, true)) fail(name, "is a second place for the text");
          return;
        }
        const auto token = get<std::string>(part, name, "SpecialToken.id");
        const Json* tokens = find_field(json, "special_tokens");
        if (tokens == nullptr || !tokens->is_object() || !tokens->contains(token))
          fail(name, "names the special token " + in_quotes(token) + ", which is not described");
        for (const Json& id : get<std::vector<Json>>((*tokens)[token], name, "ids"))
          (seen_text ? after : before).push_back(read_id(id, name));
      });
      // Processors wrap what those before them made.
      out_.prefix.insert(out_.prefix.begin(), before.begin(), before.end());
      out_.suffix.insert(out_.suffix.end(), after.begin(), after.end());
    } else {
      fail_type(field, type, "TemplateProcessing, ByteLevel and Sequence are");
    }
  }

  std::filesystem::path path_;
  Json json_;
  TokenizerDefinition& out_;
  bool byte_level_ = false;
};

/// Reads what `tokenizer_config.json` says beyond the tokenizer itself.
inline void read_tokenizer_config(const std::filesystem::path& path,
                                  TokenizerDefinition& definition) {
  const nlohmann::json json = read_json(path);
  if (!json.is_object()) throw Error(path.string() + " holds no JSON object");
  for (const auto& [key, value] : json.items()) {
    if (!key.ends_with("_token")) continue;
    if (value.is_string())
      definition.special_tokens[key] = value.get<std::string>();
    else if (value.is_object())
      definition.special_tokens[key] = required<std::string>(value, "content", path);
  }
  const auto* chat = find_field(json, "chat_template");
  if (chat == nullptr) return;
  if (chat->is_string()) {
    definition.chat_templates["default"] = chat->get<std::string>();
    return;
  }
  if (!chat->is_array())
    throw Error(path.string() + ": field \"chat_template\" is neither a text nor a list of them");
  for (const auto& entry : *chat)
    definition.chat_templates[required<std::string>(entry, "name", path)] =
        required<std::string>(entry, "template", path);
}

}  // namespace detail

/// Reads a Hugging Face tokenizer: the file `tokenizer.json` or the folder that has it, with
/// `tokenizer_config.json` and `chat_template.jinja` if they lie beside it. Only byte-level
/// byte-pair encoding; anything else is an Error that names file and field.
inline TokenizerDefinition read_tokenizer(const std::filesystem::path& path) {
  const auto file = std::filesystem::is_directory(path) ? path / "tokenizer.json" : path;
  TokenizerDefinition definition;
  definition.source = file.string();
  detail::TokenizerFile(file, definition);
  const auto folder = file.parent_path();
  if (const auto config = folder / "tokenizer_config.json"; std::filesystem::exists(config)) {
    detail::read_tokenizer_config(config, definition);
  } else if (!definition.prefix.empty()) {
    for (const AddedToken& token : definition.added_tokens)
      if (token.id == definition.prefix.front())
        definition.special_tokens["bos_token"] = token.text;
  }
  if (const auto jinja = folder / "chat_template.jinja"; std::filesystem::exists(jinja)) {
    const MappedFile text(jinja);
    definition.chat_templates["default"] =
        lossy_utf8({reinterpret_cast<const char*>(text.data()), std::size_t(text.size())});
  }
  return definition;
}

}  // namespace dflash
