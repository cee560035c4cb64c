#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/host_vector.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// A conversation as the target reads it.
struct TokenizedSample {
  std::string id;
  std::vector<std::int32_t> tokens;     // (S)
  std::vector<std::uint8_t> loss_mask;  // (S), 1 where the draft is to learn the token
};

/// The target's hidden states of one sample, wherever they lie: captured layers side by side in
/// each row. Rows are read, converted and verified only when asked for, by several threads at once
/// where a backend copies them so.
class FeatureRows {
 public:
  virtual ~FeatureRows() = default;
  virtual index_t rows() const = 0;   // S
  virtual index_t width() const = 0;  // C * H
  /// Rows [range) as 32-bit floats.                     out (range, width)
  virtual void read(Range range, float* out) const = 0;
  /// Whether they are stored in bfloat16, so that read_rounded rounds nothing.
  virtual bool in_bfloat16() const { return false; }
  /// The same rounded to bfloat16: for rows that are stored so there is no float between.
  virtual void read_rounded(Range range, bfloat16* out) const;
};

namespace detail {

/// Rows [range) of features, through floats that stay in cache.
template <class T>
void read_converted(const FeatureRows& features, Range range, T* out) {
  const index_t width = features.width(), piece = std::max<index_t>(16384 / width, 1);
  HostVector<float> values(std::size_t(std::min(piece, range.size()) * width));
  for (index_t row = range.begin; row < range.end; row += piece) {
    const Range some{row, std::min(range.end, row + piece)};
    features.read(some, values.data());
    for (index_t i = 0; i < some.size() * width; ++i) *out++ = T(values[std::size_t(i)]);
  }
}

}  // namespace detail

inline void FeatureRows::read_rounded(Range range, bfloat16* out) const {
  detail::read_converted(*this, range, out);
}

/// Rows [range) of features in a backend's type.        out (range, width)
template <class T>
void read_rows(const FeatureRows& features, Range range, T* out) {
  if constexpr (std::is_same_v<T, float>)
    features.read(range, out);
  else if constexpr (std::is_same_v<T, bfloat16>)
    features.read_rounded(range, out);
  else
    detail::read_converted(features, range, out);
}

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
