#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/config.hpp"
#include "dflash/core/float8.hpp"
#include "dflash/io/dtype.hpp"

namespace dflash {

/// Stores a row of floats as bf16, f32 or f8_e4m3 and returns its scale: what the stored values are
/// to be multiplied with, 0 where the type needs none. An f8_e4m3 row is scaled so that its largest
/// entry becomes the type's largest value.
template <class T>
float encode_row(const T* row, index_t n, DType dtype, std::byte* out) {
  if (dtype == dtype_of<T>()) {
    std::memcpy(out, row, std::size_t(n) * sizeof(T));
    return 0;
  }
  if (dtype == DType::f32) {
    for (index_t i = 0; i < n; ++i) {
      const auto value = static_cast<float>(row[i]);
      std::memcpy(out + 4 * i, &value, 4);
    }
    return 0;
  }
  if (dtype == DType::bf16) {
    for (index_t i = 0; i < n; ++i) {
      const bfloat16 value(static_cast<float>(row[i]));
      std::memcpy(out + 2 * i, &value, 2);
    }
    return 0;
  }
  float largest = 0;
  for (index_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(static_cast<float>(row[i])));
  float scale = largest / float8_e4m3::largest;
  // An infinite entry, or one so small that its scale is not a normal number, is stored unscaled.
  if (!(scale >= std::numeric_limits<float>::min()) || !std::isfinite(scale)) scale = 1;
  for (index_t i = 0; i < n; ++i)
    out[i] = std::byte(float8_e4m3(static_cast<float>(row[i]) / scale).bits);
  return scale;
}

/// The other way: the stored values, rounded where T cannot hold them.
template <class T>
void decode_row(const std::byte* row, index_t n, DType dtype, float scale, T* out) {
  if (dtype == dtype_of<T>()) {
    std::memcpy(out, row, std::size_t(n) * sizeof(T));
  } else if (dtype == DType::f32) {
    for (index_t i = 0; i < n; ++i) {
      float value;
      std::memcpy(&value, row + 4 * i, 4);
      out[i] = T(value);
    }
  } else if (dtype == DType::bf16) {
    for (index_t i = 0; i < n; ++i) {
      bfloat16 value;
      std::memcpy(&value, row + 2 * i, 2);
      out[i] = T(static_cast<float>(value));
    }
  } else {
    T meaning[256];  // of each byte in this row: looked up faster than computed
    for (int i = 0; i < 256; ++i) {
      float8_e4m3 value;
      value.bits = std::uint8_t(i);
      meaning[i] = T(static_cast<float>(value) * scale);
    }
    for (index_t i = 0; i < n; ++i) out[i] = meaning[std::size_t(row[i])];
  }
}

}  // namespace dflash
