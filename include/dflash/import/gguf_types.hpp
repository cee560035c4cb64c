#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/config.hpp"
#include "dflash/io/dtype.hpp"

namespace dflash {

/// An element type of GGUF tensors: `values` numbers lie in a block of `bytes` bytes.
struct GgufType {
  std::uint32_t id;
  std::string_view name;
  index_t values, bytes;
  void (*widen)(const std::byte* block, float* out);  // one block
};

namespace detail {

template <class T>
T gguf_number(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
inline float gguf_half(const std::byte* at) { return float(gguf_number<float16>(at)); }
inline int low_bits(std::byte b) { return int(b) & 15; }
inline int high_bits(std::byte b) { return int(b) >> 4; }

template <class T>
void widen_plain(const std::byte* block, float* out) {
  *out = float(gguf_number<T>(block));
}

inline void widen_q8_0(const std::byte* block, float* out) {
  const float d = gguf_half(block);
  for (int i = 0; i < 32; ++i) out[i] = d * float(gguf_number<std::int8_t>(block + 2 + i));
}

/// 32 numbers of `bits` 4 or 5 (the fifths in a word of their own), with a smallest one (`has_min`)
/// or around 0.
template <int bits, bool has_min>
void widen_of_32(const std::byte* block, float* out) {
  const float d = gguf_half(block), min = has_min ? gguf_half(block + 2) : 0;
  const std::byte* at = block + (has_min ? 4 : 2);
  std::uint32_t fifth = 0;
  if constexpr (bits == 5) {
    fifth = gguf_number<std::uint32_t>(at);
    at += 4;
  }
  const auto number = [&](int code, int i) {
    if constexpr (bits == 5) code |= int(fifth >> i & 1) << 4;
    if constexpr (has_min)
      return d * float(code) + min;
    else
      return d * float(code - (1 << (bits - 1)));
  };
  for (int i = 0; i < 16; ++i) {
    out[i] = number(low_bits(at[i]), i);
    out[i + 16] = number(high_bits(at[i]), i + 16);
  }
}

/// Scale and minimum j of the eight that lie in 12 bytes, 6 bits each.
struct GgufScale {
  int scale, min;
};
inline GgufScale gguf_scale(const std::byte* q, int j) {
  const auto at = [&](int i) { return int(q[i]); };
  if (j < 4) return {at(j) & 63, at(j + 4) & 63};
  return {(at(j + 4) & 15) | (at(j - 4) >> 6 << 4), (at(j + 4) >> 4) | (at(j) >> 6 << 4)};
}

/// 256 numbers of `bits` 4 or 5, in eights of 32 with a scale and a minimum each.
template <int bits>
void widen_of_256(const std::byte* block, float* out) {
  const float d = gguf_half(block), min = gguf_half(block + 2);
  const std::byte *scales = block + 4, *fifths = block + 16, *at = block + (bits == 5 ? 48 : 16);
  for (int part = 0; part < 8; ++part) {
    const GgufScale s = gguf_scale(scales, part);
    const float scale = d * float(s.scale), smallest = min * float(s.min);
    const std::byte* const from = at + part / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      int code = part % 2 == 0 ? low_bits(from[i]) : high_bits(from[i]);
      if constexpr (bits == 5) code |= (int(fifths[i]) >> part & 1) << 4;
      *out++ = scale * float(code) - smallest;
    }
  }
}

/// 256 numbers of 6 bits, in sixteens with a scale each.
inline void widen_q6_k(const std::byte* block, float* out) {
  const std::byte *low = block, *high = block + 128, *scales = block + 192;
  const float d = gguf_half(block + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = i % 128 / 32, column = i % 32;
    const std::byte four = low[half * 64 + quarter % 2 * 32 + column];
    const int two = int(high[half * 32 + column]) >> (2 * quarter) & 3;
    const int code = (quarter < 2 ? low_bits(four) : high_bits(four)) | two << 4;
    out[i] = d * float(gguf_number<std::int8_t>(scales + i / 16)) * float(code - 32);
  }
}

}  // namespace detail

/// The types that can be read, by the numbers that ggml gives them.
inline constexpr std::array<GgufType, 11> gguf_types = {{
    {0, "F32", 1, 4, detail::widen_plain<float>},
    {1, "F16", 1, 2, detail::widen_plain<float16>},
    {2, "Q4_0", 32, 18, detail::widen_of_32<4, false>},
    {3, "Q4_1", 32, 20, detail::widen_of_32<4, true>},
    {6, "Q5_0", 32, 22, detail::widen_of_32<5, false>},
    {7, "Q5_1", 32, 24, detail::widen_of_32<5, true>},
    {8, "Q8_0", 32, 34, detail::widen_q8_0},
    {12, "Q4_K", 256, 144, detail::widen_of_256<4>},
    {13, "Q5_K", 256, 176, detail::widen_of_256<5>},
    {14, "Q6_K", 256, 210, detail::widen_q6_k},
    {30, "BF16", 1, 2, detail::widen_plain<bfloat16>},
}};

/// The type with this number; nullptr if it is unknown here.
inline const GgufType* gguf_type(std::uint32_t id) {
  for (const GgufType& type : gguf_types)
    if (type.id == id) return &type;
  return nullptr;
}

}  // namespace dflash
