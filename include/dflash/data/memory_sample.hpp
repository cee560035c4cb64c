#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/data/sample.hpp"

namespace dflash {

/// Features that lie in memory: captured a moment ago, or a user's own.
class MemoryFeatures final : public FeatureRows {
 public:
  /// values (rows, width), row after row.
  MemoryFeatures(std::vector<float> values, index_t width)
      : values_(std::move(values)), width_(width) {
    expects(width > 0 && index_t(values_.size()) % width == 0, "features are whole rows");
  }
  index_t rows() const override { return index_t(values_.size()) / width_; }
  index_t width() const override { return width_; }
  void read(Range range, float* out) const override {
    expects(range.begin >= 0 && range.end <= rows(), "feature rows lie inside the sample");
    std::copy_n(values_.data() + range.begin * width_, range.size() * width_, out);
  }

 private:
  std::vector<float> values_;
  index_t width_;
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
