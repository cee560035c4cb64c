#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dflash/text/pattern.hpp"

namespace dflash {

/// What becomes of the matches of a pattern that cuts a text into pieces.
enum class SplitBehavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };

/// One pass over the pieces of a text.
struct PreTokenizerStep {
  std::optional<Pattern> pattern;  // none: cuts nothing
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;        // matches and what lies between them change their roles
  bool prefix_space = false;  // a space in front of each piece that has none
};

/// A stretch of text that is merged on its own.
struct Piece {
  std::string_view text;
  std::size_t begin = 0;   // where it starts in the text that was cut
  bool has_space = false;  // `text` begins with a space that the text has not
};

/// Cuts text into the pieces that byte pairs are merged in.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {}

  /// Pieces of valid UTF-8 in order, none empty. Their text lies in `text` or in `copies`.
  void split(std::string_view text, PatternScratch& scratch, std::deque<std::string>& copies,
             std::vector<Piece>& pieces) const {
    pieces.clear();
    if (!text.empty()) pieces.push_back({text, 0, false});
    std::vector<Piece> next;
    for (const PreTokenizerStep& step : steps_) {
      if (step.prefix_space)
        for (Piece& piece : pieces)
          if (piece.text.front() != ' ') {
            piece.text = copies.emplace_back(" " + std::string(piece.text));
            piece.has_space = true;
          }
      if (!step.pattern) continue;
      next.clear();
      for (const Piece& piece : pieces) split_piece(step, piece, scratch, next);
      pieces.swap(next);
    }
  }

 private:
  struct Part {
    std::size_t begin, end;
    bool is_match;
  };

  static void split_piece(const PreTokenizerStep& step, const Piece& piece, PatternScratch& scratch,
                          std::vector<Piece>& out) {
    std::vector<Part> parts;
    std::size_t done = 0;
    const auto add = [&](std::size_t begin, std::size_t end, bool is_match) {
      parts.push_back({begin, end, is_match != step.invert});
    };
    step.pattern->for_each_match(piece.text, scratch, [&](std::size_t begin, std::size_t end) {
      if (done < begin) add(done, begin, false);
      add(begin, end, true);
      done = end;
    });
    if (done < piece.text.size()) add(done, piece.text.size(), false);
    if (step.behavior != SplitBehavior::isolated) join(step.behavior, parts);
    for (const Part& part : parts) {
      if (part.begin == part.end) continue;
      const std::size_t begin = part.begin - (piece.has_space && part.begin > 0 ? 1 : 0);
      out.push_back({piece.text.substr(part.begin, part.end - part.begin), piece.begin + begin,
                     piece.has_space && part.begin == 0});
    }
  }

  static void join(SplitBehavior behavior, std::vector<Part>& parts) {
    std::vector<Part> joined;
    bool previous = false;
    const auto grow = [&](const Part& part) {
      joined.back().begin = std::min(joined.back().begin, part.begin);
      joined.back().end = std::max(joined.back().end, part.end);
    };
    const auto fold = [&](const Part& part) {
      const bool grows = behavior == SplitBehavior::contiguous ? part.is_match == previous
                                                               : part.is_match && !previous;
      if (grows && !joined.empty())
        grow(part);
      else
        joined.push_back(part);
      previous = part.is_match;
    };
    if (behavior == SplitBehavior::removed) {
      for (const Part& part : parts)
        if (!part.is_match) joined.push_back(part);
    } else if (behavior == SplitBehavior::merged_with_next) {
      for (auto part = parts.rbegin(); part != parts.rend(); ++part) fold(*part);
      std::reverse(joined.begin(), joined.end());
    } else {
      for (const Part& part : parts) fold(part);
    }
    parts.swap(joined);
  }

  std::vector<PreTokenizerStep> steps_;
};

}  // namespace dflash
