#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/text/added_tokens.hpp"
#include "dflash/text/byte_pairs.hpp"
#include "dflash/text/normalized_text.hpp"
#include "dflash/text/pre_tokenizer.hpp"

namespace dflash {

/// The way from text to tokens: added tokens are cut out, what lies between is normalised, cut into
/// pieces, and each piece merged. May be used from several threads at once.
class TextEncoder {
 public:
  TextEncoder(BytePairs byte_pairs, PreTokenizer pre_tokenizer, std::vector<NormalForm> forms,
              const std::vector<AddedToken>& added_tokens)
      : byte_pairs_(std::move(byte_pairs)),
        pre_tokenizer_(std::move(pre_tokenizer)),
        forms_(std::move(forms)) {
    for (AddedToken token : added_tokens) {
      if (token.normalized) token.text = NormalizedText(token.text, forms_, false).view();
      (token.normalized ? after_normalizing_ : before_normalizing_).add(token);
    }
  }

  /// Where added tokens cut valid UTF-8: each stretch becomes tokens without regard to the others.
  std::vector<AddedTokenFinder::Stretch> stretches(std::string_view text) const {
    return before_normalizing_.split(text);
  }

  /// Adds the tokens of a stretch of valid UTF-8 to `ids` and, if asked for, the bytes of `text`
  /// that each stands for to `places`.
  void encode(std::string_view text, const AddedTokenFinder::Stretch& stretch,
              std::vector<std::int32_t>& ids, std::vector<Range>* places = nullptr) const {
    const auto place = [&](Range bytes) {
      if (places != nullptr)
        places->push_back(
            {index_t(stretch.begin) + bytes.begin, index_t(stretch.begin) + bytes.end});
    };
    if (stretch.id >= 0) {
      ids.push_back(stretch.id);
      place({0, index_t(stretch.end - stretch.begin)});
      return;
    }
    const Borrowed work(*pool_);
    const NormalizedText normal(text.substr(stretch.begin, stretch.end - stretch.begin), forms_,
                                places != nullptr);
    for (const auto& part : after_normalizing_.split(normal.view())) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        place(normal.origin({index_t(part.begin), index_t(part.end)}));
        continue;
      }
      work->copies.clear();
      pre_tokenizer_.split(normal.view().substr(part.begin, part.end - part.begin), work->patterns,
                           work->copies, work->pieces);
      for (const Piece& piece : work->pieces) {
        if (places == nullptr) {
          encode_piece(piece.text, *work, ids);
          continue;
        }
        std::vector<std::size_t> lengths;
        byte_pairs_.encode(piece.text, work->merging, ids, &lengths);
        std::size_t at = part.begin + piece.begin;
        bool has_space = piece.has_space;
        for (std::size_t length : lengths) {
          if (std::exchange(has_space, false)) --length;  // that space is not in the text
          place(normal.origin({index_t(at), index_t(at + length)}));
          at += length;
        }
      }
    }
  }

 private:
  /// What one thread needs while it encodes.
  struct Work {
    PatternScratch patterns;
    BytePairs::Scratch merging;
    std::vector<Piece> pieces;
    std::deque<std::string> copies;
    std::unordered_map<std::string, std::vector<std::int32_t>, StringHash, std::equal_to<>> known;
  };
  struct Pool {
    std::mutex mutex;
    std::vector<std::unique_ptr<Work>> free;
  };
  /// A Work that nobody else uses, given back at the end.
  class Borrowed {
   public:
    explicit Borrowed(Pool& pool) : pool_(pool) {
      {
        const std::scoped_lock lock(pool_.mutex);
        if (!pool_.free.empty()) {
          work_ = std::move(pool_.free.back());
          pool_.free.pop_back();
        }
      }
      if (!work_) work_ = std::make_unique<Work>();
    }
    ~Borrowed() {
      const std::scoped_lock lock(pool_.mutex);
      pool_.free.push_back(std::move(work_));
    }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    Work& operator*() const { return *work_; }
    Work* operator->() const { return work_.get(); }

   private:
    Pool& pool_;
    std::unique_ptr<Work> work_;
  };

  void encode_piece(std::string_view piece, Work& work, std::vector<std::int32_t>& ids) const {
    constexpr std::size_t longest = 64, most = std::size_t(1) << 16;
    if (piece.size() > longest) return byte_pairs_.encode(piece, work.merging, ids);
    auto found = work.known.find(piece);
    if (found == work.known.end()) {
      if (work.known.size() >= most) work.known.clear();
      std::vector<std::int32_t> tokens;
      byte_pairs_.encode(piece, work.merging, tokens);
      found = work.known.emplace(piece, std::move(tokens)).first;
    }
    ids.insert(ids.end(), found->second.begin(), found->second.end());
  }

  BytePairs byte_pairs_;
  PreTokenizer pre_tokenizer_;
  std::vector<NormalForm> forms_;
  AddedTokenFinder before_normalizing_, after_normalizing_;
  std::unique_ptr<Pool> pool_ = std::make_unique<Pool>();
};

}  // namespace dflash
