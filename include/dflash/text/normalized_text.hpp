#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/text/unicode.hpp"

namespace dflash {

/// A text in the normalisation forms of a tokenizer, and where each part of it came from.
class NormalizedText {
 public:
  /// `with_places` = false saves the book-keeping that `origin` needs.
  NormalizedText(std::string_view raw, const std::vector<NormalForm>& forms, bool with_places) {
    if (forms.empty() || is_ascii(raw)) {
      view_ = raw;
    } else if (!with_places) {
      copy_ = apply(raw, forms);
      view_ = copy_;
    } else {
      // Nothing composes with, or is reordered across, the front of an ASCII character.
      for (std::size_t begin = 0; begin < raw.size();) {
        std::size_t end = begin + 1;
        while (end < raw.size() && static_cast<unsigned char>(raw[end]) >= 0x80) ++end;
        add(raw.substr(begin, end - begin), begin, forms);
        begin = end;
      }
      view_ = copy_;
    }
  }
  NormalizedText(const NormalizedText&) = delete;
  NormalizedText& operator=(const NormalizedText&) = delete;

  std::string_view view() const { return view_; }

  /// The bytes of the raw text that bytes of this one came from: all of a changed stretch that they
  /// touch.
  Range origin(Range bytes) const {
    return {raw_position(bytes.begin, false), raw_position(bytes.end, true)};
  }

 private:
  struct Change {
    std::size_t begin, end;          // here
    std::size_t raw_begin, raw_end;  // in the raw text
  };

  static std::string apply(std::string_view raw, const std::vector<NormalForm>& forms) {
    std::string text(raw);
    for (const NormalForm form : forms) text = normalized(text, form);
    return text;
  }

  void add(std::string_view raw, std::size_t raw_begin, const std::vector<NormalForm>& forms) {
    const std::string normal = apply(raw, forms);
    const std::size_t begin = copy_.size();
    copy_ += normal;
    if (normal == raw) return;
    const auto inside = [](std::string_view text, std::size_t at) {
      return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
    };
    const std::size_t shorter = std::min(raw.size(), normal.size());
    std::size_t same = 0, same_end = 0;
    while (same < shorter && raw[same] == normal[same]) ++same;
    while (same > 0 && (inside(raw, same) || inside(normal, same))) --same;
    while (same_end < shorter - same &&
           raw[raw.size() - 1 - same_end] == normal[normal.size() - 1 - same_end])
      ++same_end;
    while (same_end > 0 &&
           (inside(raw, raw.size() - same_end) || inside(normal, normal.size() - same_end)))
      --same_end;
    changes_.push_back({begin + same, copy_.size() - same_end, raw_begin + same,
                        raw_begin + raw.size() - same_end});
  }

  index_t raw_position(index_t position, bool is_end) const {
    const auto at = std::size_t(position);
    const auto after = std::upper_bound(
        changes_.begin(), changes_.end(), at, [is_end](std::size_t place, const Change& change) {
          return is_end ? place <= change.begin : place < change.begin;
        });
    if (after == changes_.begin()) return position;
    const Change& change = *(after - 1);
    const bool within = is_end ? at <= change.end : at < change.end;
    if (within) return index_t(is_end ? change.raw_end : change.raw_begin);
    return index_t(change.raw_end + (at - change.end));
  }

  std::string_view view_;
  std::string copy_;
  std::vector<Change> changes_;  // in order
};

}  // namespace dflash
