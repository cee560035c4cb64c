#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "dflash/text/added_tokens.hpp"
#include "dflash/text/byte_pairs.hpp"
#include "dflash/text/pre_tokenizer.hpp"
#include "dflash/text/unicode.hpp"

namespace dflash {

/// All that a byte-level tokenizer consists of, whatever file it comes from.
struct TokenizerDefinition {
  std::string source;  // the file, for messages

  Vocabulary vocabulary;                                    // spelled in the byte alphabet
  std::vector<std::pair<std::string, std::string>> merges;  // in order of rank
  BytePairs::Options options;
  std::vector<AddedToken> added_tokens;
  std::vector<NormalForm> normalizers;  // applied one after another
  std::vector<PreTokenizerStep> pre_tokenizer;
  std::vector<std::int32_t> prefix, suffix;  // what "add special tokens" puts around a text

  std::map<std::string, std::string> special_tokens;  // "bos_token", "eos_token", ... -> text
  std::map<std::string, std::string> chat_templates;  // name -> Jinja; "default" is the usual one
};

}  // namespace dflash
