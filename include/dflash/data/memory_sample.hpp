#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/error.hpp"
#include "dflash/data/row_codec.hpp"
#include "dflash/data/sample.hpp"
#include "dflash/io/dtype.hpp"

namespace dflash {

/// Features that lie in memory: captured a moment ago, or a user's own.
class MemoryFeatures final : public FeatureRows {
 public:
  /// values (rows, width), row after row.
  MemoryFeatures(std::vector<float> values, index_t width)
      : MemoryFeatures(Values(std::move(values)), width) {}
  MemoryFeatures(std::vector<bfloat16> values, index_t width)
      : MemoryFeatures(Values(std::move(values)), width) {}
  index_t rows() const override { return rows_; }
  index_t width() const override { return width_; }
  bool in_bfloat16() const override { return values_.index() == 1; }
  void read(Range range, float* out) const override { read_as(range, out); }
  void read_rounded(Range range, bfloat16* out) const override { read_as(range, out); }

 private:
  using Values = std::variant<std::vector<float>, std::vector<bfloat16>>;

  MemoryFeatures(Values values, index_t width) : values_(std::move(values)), width_(width) {
    const index_t size = std::visit([](const auto& all) { return index_t(all.size()); }, values_);
    expects(width > 0 && size % width == 0, "features are whole rows");
    rows_ = size / width;
  }
  template <class T>
  void read_as(Range range, T* out) const {
    expects(range.begin >= 0 && range.end <= rows_, "feature rows lie inside the sample");
    std::visit(
        [&](const auto& all) {
          const auto* const from = all.data() + range.begin * width_;
          decode_row(reinterpret_cast<const std::byte*>(from), range.size() * width_,
                     dtype_of<std::decay_t<decltype(*from)>>(), /*scale=*/0, out);
        },
        values_);
  }

  Values values_;
  index_t rows_ = 0, width_;
};

/// A view of a text, which must outlive it; without features yet.
inline Sample view_of(const TokenizedSample& text) {
  return {text.id,
          {text.tokens.data(), {index_t(text.tokens.size())}},
          {text.loss_mask.data(), {index_t(text.loss_mask.size())}},
          nullptr};
}

/// A sample that owns its tokens and mask and shares its features.
struct MemorySample {
  TokenizedSample text;
  std::shared_ptr<const FeatureRows> features;

  /// Views of this object, which must outlive them.
  operator Sample() const {
    Sample sample = view_of(text);
    sample.features = features;
    return sample;
  }
};

}  // namespace dflash
