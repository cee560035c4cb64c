#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/io/in_quotes.hpp"
#include "dflash/text/byte_alphabet.hpp"

namespace dflash {

struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>()(text);
  }
};

/// Names (as the file spells them) and their ids.
using Vocabulary = std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>>;

/// Byte-pair encoding (Sennrich et al., arXiv:1508.07909) over bytes: merges the pair of lowest
/// rank until none is left. The cost grows with n log n in the length of a piece.
class BytePairs {
 public:
  struct Options {
    bool ignore_merges = false;          // a piece that is an entry of the vocabulary is that token
    std::optional<std::string> unknown;  // for bytes without a token; none: they vanish
    bool fuse_unknown = false;           // neighbouring unknown bytes make one token
  };

  /// The working memory of one thread.
  struct Scratch {
    struct Symbol {
      std::int32_t id;  // -1: merged into the one before
      std::int32_t previous, next;
      std::int32_t length;  // bytes
    };
    struct Candidate {
      std::uint32_t rank;
      std::int32_t at, merged;
      bool operator>(const Candidate& o) const {
        return rank != o.rank ? rank > o.rank : at > o.at;
      }
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> queue;
  };

  BytePairs() = default;

  /// Merges are in order of rank. Errors begin with `where`.
  BytePairs(const Vocabulary& vocabulary,
            const std::vector<std::pair<std::string, std::string>>& merges, Options options,
            const std::string& where)
      : options_(std::move(options)) {
    const auto id_of = [&](const std::string& token, const char* field) {
      const auto found = vocabulary.find(token);
      if (found == vocabulary.end())
        throw Error(where + ": " + field + " names " + in_quotes(token) +
                    ", which is not in the vocabulary");
      return found->second;
    };
    for (unsigned byte = 0; byte < 256; ++byte) {
      std::string name;
      append_utf8(name, ByteAlphabet::get().character(std::uint8_t(byte)));
      const auto found = vocabulary.find(name);
      bytes_[byte] = found == vocabulary.end() ? -1 : found->second;
    }
    if (options_.unknown) unknown_ = id_of(*options_.unknown, "model.unk_token");
    std::size_t slots = 16;
    while (slots < 2 * merges.size()) slots *= 2;
    table_.resize(slots);
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
      const auto& [left, right] = merges[rank];
      const std::uint64_t pair = key(id_of(left, "model.merges"), id_of(right, "model.merges"));
      Merge& merge = slot(pair);
      merge = {pair, std::uint32_t(rank), id_of(left + right, "model.merges")};
    }
    if (options_.ignore_merges)
      for (const auto& [name, id] : vocabulary)
        if (const auto bytes = ByteAlphabet::get().decode(name)) whole_.emplace(*bytes, id);
  }

  /// Adds the tokens of a piece to `ids` and, if asked for, the bytes each stands for to `lengths`.
  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids,
              std::vector<std::size_t>* lengths = nullptr) const {
    if (options_.ignore_merges) {
      const auto found = whole_.find(piece);
      if (found != whole_.end()) {
        ids.push_back(found->second);
        if (lengths != nullptr) lengths->push_back(piece.size());
        return;
      }
    }
    auto& symbols = scratch.symbols;
    symbols.clear();
    bool after_unknown = false;
    for (const char c : piece) {
      std::int32_t id = bytes_[std::uint8_t(c)];
      const bool unknown = id < 0;
      if (unknown && (unknown_ < 0 || (options_.fuse_unknown && after_unknown))) continue;
      if (unknown) id = unknown_;
      after_unknown = unknown;
      const auto n = std::int32_t(symbols.size());
      symbols.push_back({id, n - 1, n + 1, 1});
    }
    if (symbols.empty()) return;
    symbols.back().next = -1;
    merge(scratch);
    for (std::int32_t at = 0; at >= 0; at = symbols[std::size_t(at)].next) {
      const Scratch::Symbol& symbol = symbols[std::size_t(at)];
      ids.push_back(symbol.id);
      if (lengths != nullptr) lengths->push_back(std::size_t(symbol.length));
    }
  }

 private:
  struct Merge {
    std::uint64_t pair = ~std::uint64_t(0);  // no pair of ids is all ones
    std::uint32_t rank = 0;
    std::int32_t merged = 0;
  };

  static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return std::uint64_t(std::uint32_t(left)) << 32 | std::uint32_t(right);
  }

  std::size_t first_slot(std::uint64_t pair) const {
    return std::size_t((pair * 0x9E3779B97F4A7C15) >> 20) & (table_.size() - 1);
  }
  Merge& slot(std::uint64_t pair) {
    std::size_t i = first_slot(pair);
    while (table_[i].pair != pair && table_[i].pair != Merge().pair) i = (i + 1) % table_.size();
    return table_[i];
  }
  const Merge* find(std::int32_t left, std::int32_t right) const {
    const std::uint64_t pair = key(left, right);
    for (std::size_t i = first_slot(pair);; i = (i + 1) & (table_.size() - 1)) {
      if (table_[i].pair == pair) return &table_[i];
      if (table_[i].pair == Merge().pair) return nullptr;
    }
  }

  void merge(Scratch& scratch) const {
    auto& symbols = scratch.symbols;
    auto& queue = scratch.queue;
    queue.clear();
    const auto symbol = [&](std::int32_t at) -> Scratch::Symbol& {
      return symbols[std::size_t(at)];
    };
    const auto propose = [&](std::int32_t at) {
      const Merge* found = find(symbol(at).id, symbol(symbol(at).next).id);
      if (found == nullptr) return;
      queue.push_back({found->rank, at, found->merged});
      std::push_heap(queue.begin(), queue.end(), std::greater<>());
    };
    for (std::int32_t at = 0; symbol(at).next >= 0; ++at) propose(at);
    while (!queue.empty()) {
      std::pop_heap(queue.begin(), queue.end(), std::greater<>());
      const auto candidate = queue.back();
      queue.pop_back();
      Scratch::Symbol& left = symbol(candidate.at);
      if (left.id < 0 || left.next < 0) continue;
      // The pair here may have changed since: it still counts if it makes the same token. That is
      // the rule of the Hugging Face tokenizers, which matters where two pairs make one token.
      const Merge* found = find(left.id, symbol(left.next).id);
      if (found == nullptr || found->merged != candidate.merged) continue;
      Scratch::Symbol& right = symbol(left.next);
      left.id = candidate.merged;
      left.next = right.next;
      left.length += right.length;
      right.id = -1;
      if (left.next >= 0) symbol(left.next).previous = candidate.at;
      if (left.previous >= 0) propose(left.previous);
      if (left.next >= 0) propose(candidate.at);
    }
  }

  Options options_;
  std::array<std::int32_t, 256> bytes_{};  // token of each byte, or -1
  std::int32_t unknown_ = -1;
  std::vector<Merge> table_ = std::vector<Merge>(16);  // open addressing
  Vocabulary whole_;                                   // bytes of a token -> id
};

}  // namespace dflash
