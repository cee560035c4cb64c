#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"
#include "dflash/text/byte_alphabet.hpp"
#include "dflash/text/text_encoder.hpp"
#include "dflash/text/tokenizer_definition.hpp"
#include "dflash/text/tokenizer_file.hpp"

namespace dflash {

/// Text to token ids and back: byte-level byte-pair encoding, token for token as the Hugging Face
/// tokenizers do it. Const functions may be called from several threads at once.
class Tokenizer {
 public:
  /// A token and the bytes of the text that it stands for.
  struct Placed {
    std::int32_t id;
    Range bytes;
  };

  /// From `tokenizer.json` or the folder that has it. Error naming the file and the field.
  explicit Tokenizer(const std::filesystem::path& path) : Tokenizer(read_tokenizer(path)) {}

  explicit Tokenizer(TokenizerDefinition definition)
      : definition_(std::move(definition)),
        encoder_(BytePairs(definition_.vocabulary, definition_.merges, definition_.options,
                           definition_.source),
                 PreTokenizer(definition_.pre_tokenizer), definition_.normalizers,
                 definition_.added_tokens) {
    definition_.merges = {};
    for (const auto& [text, id] : definition_.vocabulary)
      if (!texts_.emplace(id, text).second)
        throw Error(definition_.source + ": field \"model.vocab\" gives id " + std::to_string(id) +
                    " to two tokens");
    for (const AddedToken& token : definition_.added_tokens) {
      texts_[token.id] = token.text;
      if (token.special) special_.insert(token.id);
    }
    for (const auto& [id, text] : texts_) id_limit_ = std::max(id_limit_, index_t(id) + 1);
  }

  /// The tokens of a text, at most `max_length` of them. Added tokens in the text are recognised;
  /// those that belong around a text are added only if asked for. What is no UTF-8 is read as
  /// U+FFFD.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens = false,
                                   index_t max_length = no_limit) const {
    std::string valid;
    if (!is_utf8(text)) text = valid = lossy_utf8(text);
    std::vector<std::int32_t> ids;
    if (add_special_tokens) ids = definition_.prefix;
    for (const auto& stretch : encoder_.stretches(text)) {
      if (index_t(ids.size()) >= max_length) break;
      encoder_.encode(text, stretch, ids);
    }
    if (add_special_tokens)
      ids.insert(ids.end(), definition_.suffix.begin(), definition_.suffix.end());
    ids.resize(std::min(ids.size(), std::size_t(max_length)));
    return ids;
  }

  /// The tokens of valid UTF-8, each with the bytes it stands for. Tokens of characters that
  /// normalisation changed share the bytes of the whole changed stretch.
  std::vector<Placed> encode_with_places(std::string_view text) const {
    expects(is_utf8(text), "only the tokens of valid UTF-8 have places");
    std::vector<std::int32_t> ids;
    std::vector<Range> places;
    for (const auto& stretch : encoder_.stretches(text))
      encoder_.encode(text, stretch, ids, &places);
    std::vector<Placed> placed;
    for (std::size_t i = 0; i < ids.size(); ++i) placed.push_back({ids[i], places[i]});
    return placed;
  }

  /// The text of tokens; bytes that are no UTF-8 become U+FFFD, ids without a token nothing.
  std::string decode(const std::vector<std::int32_t>& ids, bool skip_special_tokens = false) const {
    std::string bytes;
    for (const std::int32_t id : ids) {
      const auto found = texts_.find(id);
      if (found == texts_.end() || (skip_special_tokens && is_special(id))) continue;
      const auto decoded = ByteAlphabet::get().decode(found->second);
      bytes += decoded ? *decoded : found->second;
    }
    return lossy_utf8(bytes);
  }

  /// Number of tokens, added ones included.
  index_t size() const { return index_t(texts_.size()); }
  /// One more than the largest id.
  index_t id_limit() const { return id_limit_; }
  bool is_special(std::int32_t id) const { return special_.contains(id); }

  /// The id of a token as the file spells it: "<|im_end|>".
  std::optional<std::int32_t> token_id(std::string_view text) const {
    for (const AddedToken& token : definition_.added_tokens)
      if (token.text == text) return token.id;
    const auto found = definition_.vocabulary.find(text);
    if (found == definition_.vocabulary.end()) return std::nullopt;
    return found->second;
  }

  /// The text of "bos_token", "eos_token", "pad_token", "unk_token", "mask_token" ... if it has
  /// one.
  std::optional<std::string> special_token(const std::string& role) const {
    const auto found = definition_.special_tokens.find(role);
    if (found == definition_.special_tokens.end()) return std::nullopt;
    return found->second;
  }
  /// Its id, if it has one and that is a token.
  std::optional<std::int32_t> special_token_id(const std::string& role) const {
    const auto text = special_token(role);
    return text ? token_id(*text) : std::nullopt;
  }

  /// The way from text to tokens, for those who want only a part of it.
  const TextEncoder& encoder() const { return encoder_; }
  /// What it was made from, without the merges.
  const TokenizerDefinition& definition() const { return definition_; }

  static constexpr index_t no_limit = index_t(std::size_t(-1) >> 1);

 private:
  TokenizerDefinition definition_;
  TextEncoder encoder_;
  std::unordered_map<std::int32_t, std::string> texts_;
  std::unordered_set<std::int32_t> special_;
  index_t id_limit_ = 0;
};

}  // namespace dflash
