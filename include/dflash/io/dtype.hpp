#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/config.hpp"
#include "dflash/core/float8.hpp"

namespace dflash {

/// The element types of tensors in files.
enum class DType { boolean, u8, i8, i16, u16, i32, u32, i64, u64, f8_e4m3, f16, bf16, f32, f64 };

/// Its name in safetensors headers, such as "F32".
inline std::string_view name_of(DType dtype) {
  static constexpr std::array<std::string_view, 14> names = {
      "BOOL", "U8",  "I8",      "I16", "U16",  "I32", "U32",
      "I64",  "U64", "F8_E4M3", "F16", "BF16", "F32", "F64"};
  return names[std::size_t(dtype)];
}

/// Bytes of one element.
constexpr index_t size_of(DType dtype) {
  constexpr std::array<index_t, 14> sizes = {1, 1, 1, 2, 2, 4, 4, 8, 8, 1, 2, 2, 4, 8};
  return sizes[std::size_t(dtype)];
}

/// The type with this safetensors name; none if it is unknown here.
inline std::optional<DType> dtype_named(std::string_view name) {
  for (int i = 0; i <= int(DType::f64); ++i)
    if (name_of(DType(i)) == name) return DType(i);
  return std::nullopt;
}

/// The element type that stores a T.
template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, bool>)
    return DType::boolean;
  else if constexpr (std::is_same_v<T, bfloat16>)
    return DType::bf16;
  else if constexpr (std::is_same_v<T, float16>)
    return DType::f16;
  else if constexpr (std::is_same_v<T, float8_e4m3>)
    return DType::f8_e4m3;
  else if constexpr (std::is_same_v<T, float>)
    return DType::f32;
  else if constexpr (std::is_same_v<T, double>)
    return DType::f64;
  else {
    static_assert(std::is_integral_v<T>, "no tensor in a file has this element type");
    constexpr bool is_signed = std::is_signed_v<T>;
    if constexpr (sizeof(T) == 1)
      return is_signed ? DType::i8 : DType::u8;
    else if constexpr (sizeof(T) == 2)
      return is_signed ? DType::i16 : DType::u16;
    else if constexpr (sizeof(T) == 4)
      return is_signed ? DType::i32 : DType::u32;
    else
      return is_signed ? DType::i64 : DType::u64;
  }
}

/// Calls f(std::type_identity<T>()) with the T that `dtype` stores.
template <class F>
decltype(auto) with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::boolean:
      return f(std::type_identity<bool>());
    case DType::u8:
      return f(std::type_identity<std::uint8_t>());
    case DType::i8:
      return f(std::type_identity<std::int8_t>());
    case DType::i16:
      return f(std::type_identity<std::int16_t>());
    case DType::u16:
      return f(std::type_identity<std::uint16_t>());
    case DType::i32:
      return f(std::type_identity<std::int32_t>());
    case DType::u32:
      return f(std::type_identity<std::uint32_t>());
    case DType::i64:
      return f(std::type_identity<std::int64_t>());
    case DType::u64:
      return f(std::type_identity<std::uint64_t>());
    case DType::f8_e4m3:
      return f(std::type_identity<float8_e4m3>());
    case DType::f16:
      return f(std::type_identity<float16>());
    case DType::bf16:
      return f(std::type_identity<bfloat16>());
    case DType::f32:
      return f(std::type_identity<float>());
    case DType::f64:
      break;
  }
  return f(std::type_identity<double>());
}

}  // namespace dflash
