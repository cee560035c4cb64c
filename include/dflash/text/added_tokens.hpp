#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dflash/text/unicode.hpp"
#include "dflash/text/utf8.hpp"

namespace dflash {

/// A token that is found in the text as it stands, before anything is merged.
struct AddedToken {
  std::int32_t id = 0;
  std::string text;
  bool single_word = false;  // not inside a word
  bool strip_left = false;   // takes the white space before it
  bool strip_right = false;  // takes the white space after it
  bool normalized = false;   // is looked for after normalisation
  bool special = false;      // can be left out when decoding
};

/// Finds added tokens: the leftmost first, of those the longest.
class AddedTokenFinder {
 public:
  struct Stretch {
    std::size_t begin = 0, end = 0;
    std::int32_t id = -1;  // -1: plain text
  };

  AddedTokenFinder() : nodes_(1) {}

  /// An empty text is never found.
  void add(const AddedToken& token) {
    if (token.text.empty()) return;
    std::size_t node = 0;
    for (const char c : token.text) node = child_or_new(node, c);
    nodes_[node].token = std::int32_t(tokens_.size());
    tokens_.push_back(token);
    starts_[std::uint8_t(token.text.front())] = true;
  }

  /// The stretches of valid UTF-8, in order, none empty.
  std::vector<Stretch> split(std::string_view text) const {
    std::vector<Stretch> stretches;
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size();) {
      const std::int32_t found = starts_[std::uint8_t(text[at])] ? longest(text, at) : -1;
      if (found < 0) {
        ++at;
        continue;
      }
      const AddedToken& token = tokens_[std::size_t(found)];
      std::size_t begin = at, end = at + token.text.size();
      at = end;
      if (token.single_word && (ends_in_word(text.substr(0, begin)) || starts_word(text, end)))
        continue;
      if (token.strip_left) {
        begin = std::max(begin, done);
        while (begin > done) {
          const std::size_t before = code_point_before(text, begin);
          if (!is_white_space(code_point_at(text, before).value)) break;
          begin = before;
        }
      }
      if (token.strip_right)
        while (end < text.size() && is_white_space(code_point_at(text, end).value))
          end += code_point_at(text, end).size;
      if (done < begin) stretches.push_back({done, begin, -1});
      if (begin < end) stretches.push_back({begin, end, token.id});
      // If the token before took this one's text as white space, that may move back, as in the
      // Hugging Face tokenizers: what is left of the white space counts again.
      if (begin <= end) done = end;
    }
    if (done < text.size()) stretches.push_back({done, text.size(), -1});
    return stretches;
  }

 private:
  struct Node {
    std::vector<std::pair<char, std::size_t>> children;
    std::int32_t token = -1;
  };

  static bool ends_in_word(std::string_view text) {
    return !text.empty() &&
           is_word_character(code_point_at(text, code_point_before(text, text.size())).value);
  }
  static bool starts_word(std::string_view text, std::size_t at) {
    return at < text.size() && is_word_character(code_point_at(text, at).value);
  }

  std::size_t child(std::size_t node, char c) const {
    for (const auto& [label, to] : nodes_[node].children)
      if (label == c) return to;
    return 0;
  }
  std::size_t child_or_new(std::size_t node, char c) {
    if (const std::size_t to = child(node, c)) return to;
    nodes_.emplace_back();
    nodes_[node].children.emplace_back(c, nodes_.size() - 1);
    return nodes_.size() - 1;
  }
  std::int32_t longest(std::string_view text, std::size_t at) const {
    std::int32_t found = -1;
    for (std::size_t node = 0; at < text.size(); ++at) {
      node = child(node, text[at]);
      if (node == 0) break;
      if (nodes_[node].token >= 0) found = nodes_[node].token;
    }
    return found;
  }

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  bool starts_[256] = {};
};

}  // namespace dflash
