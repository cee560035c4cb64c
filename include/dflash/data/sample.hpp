#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dflash/core/tensor.hpp"

namespace dflash {

/// A conversation as the target reads it.
struct TokenizedSample {
  std::string id;
  std::vector<std::int32_t> tokens;     // (S)
  std::vector<std::uint8_t> loss_mask;  // (S), 1 where the draft is to learn the token
};

/// The target's hidden states of one sample, wherever they lie: captured layers side by side in
/// each row. Rows are read, converted and verified only when asked for.
class FeatureRows {
 public:
  virtual ~FeatureRows() = default;
  virtual index_t rows() const = 0;   // S
  virtual index_t width() const = 0;  // C * H
  /// Rows [range) as 32-bit floats.                     out (range, width)
  virtual void read(Range range, float* out) const = 0;
};

/// One training sequence. Tokens and mask are small and read whole; features only where touched.
struct Sample {
  std::string id;
  View<const std::int32_t, 1> tokens;     // (S)
  View<const std::uint8_t, 1> loss_mask;  // (S)
  std::shared_ptr<const FeatureRows> features;
};

/// An ordered collection of samples. Knows nothing of ranks, batches or devices.
template <class D>
concept Dataset = requires(const D& dataset, index_t i) {
  { dataset.size() } -> std::convertible_to<index_t>;
  { dataset[i] } -> std::convertible_to<Sample>;
};

}  // namespace dflash
