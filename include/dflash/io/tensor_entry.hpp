#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"
#include "dflash/io/dtype.hpp"

namespace dflash {

/// A tensor in a file: row-major, little-endian, possibly not aligned.
struct TensorEntry {
  DType dtype = DType::u8;
  std::vector<index_t> shape;
  const std::byte* data = nullptr;

  index_t size() const {  // elements
    index_t n = 1;
    for (const index_t extent : shape) n *= extent;
    return n;
  }
  index_t bytes() const { return size() * size_of(dtype); }

  /// The elements where they lie, if they are Ts and aligned; else nullptr.
  template <class T>
  const T* in_place() const {
    const bool usable =
        dtype == dtype_of<T>() && reinterpret_cast<std::uintptr_t>(data) % alignof(T) == 0;
    return usable ? reinterpret_cast<const T*>(data) : nullptr;
  }
};

/// A shape as text, such as "(4, 160)".
inline std::string to_string(const std::vector<index_t>& shape) {
  std::string text = "(";
  for (std::size_t d = 0; d < shape.size(); ++d)
    text += (d > 0 ? ", " : "") + std::to_string(shape[d]);
  return text + ")";
}

namespace detail {

template <class T>
inline constexpr bool is_small_float =
    std::is_same_v<T, bfloat16> || std::is_same_v<T, float16> || std::is_same_v<T, float8_e4m3>;

/// Converts one element. False if the value has no place in `To`: it is out of range or, to an
/// integer, not whole. Rounding is allowed to floating-point types only.
template <class To, class From>
bool convert_element(From from, To& to) {
  if constexpr (is_small_float<From>) {
    return convert_element(static_cast<float>(from), to);
  } else if constexpr (std::is_same_v<From, bool>) {
    return convert_element(std::uint8_t(from), to);
  } else if constexpr (std::is_floating_point_v<To>) {
    to = static_cast<To>(from);
    if constexpr (std::is_same_v<From, double> && std::is_same_v<To, float>)
      return std::isfinite(to) || !std::isfinite(from);
    return true;
  } else if constexpr (is_small_float<To>) {
    float single = 0;
    if (!convert_element(from, single)) return false;
    to = To(single);
    return std::isfinite(static_cast<float>(to)) || !std::isfinite(single);
  } else if constexpr (std::is_floating_point_v<From>) {
    const double value = from, bound = std::ldexp(1.0, std::numeric_limits<To>::digits);
    if (!(value < bound && value >= (std::is_signed_v<To> ? -bound : 0.0))) return false;
    to = static_cast<To>(value);
    return double(to) == value;
  } else {
    to = static_cast<To>(from);
    return std::in_range<To>(from);
  }
}

}  // namespace detail

/// Converts elements [begin, end) of any type to T: a floating-point or integer type.
/// Error if a value has no place in T.                      out (end - begin)
template <class T>
void convert(const TensorEntry& tensor, Range elements, T* out) {
  if (elements.size() == 0) return;
  with_type(tensor.dtype, [&]<class From>(std::type_identity<From>) {
    const std::byte* const from = tensor.data + elements.begin * index_t(sizeof(From));
    if constexpr (std::is_same_v<From, T>) {
      std::memcpy(out, from, std::size_t(elements.size()) * sizeof(T));
    } else {
      for (index_t i = 0; i < elements.size(); ++i) {
        // A boolean is read as a byte: a file may hold values that are no bool.
        using Stored = std::conditional_t<std::is_same_v<From, bool>, std::uint8_t, From>;
        Stored stored;
        std::memcpy(&stored, from + i * index_t(sizeof(From)), sizeof(From));
        bool ok;
        if constexpr (std::is_same_v<From, bool>)
          ok = detail::convert_element(stored != 0, out[i]);
        else
          ok = detail::convert_element(stored, out[i]);
        if (!ok)
          throw Error("element " + std::to_string(elements.begin + i) + " (" +
                      std::string(name_of(tensor.dtype)) + ") has no place in " +
                      std::string(name_of(dtype_of<T>())));
      }
    }
  });
}

/// Converts all elements.                                                       out (size)
template <class T>
void convert(const TensorEntry& tensor, T* out) {
  convert(tensor, Range{0, tensor.size()}, out);
}

/// A part of a tensor: these rows, and of each these columns (a tensor with one dimension is one
/// column).
struct TensorPart {
  Range rows, columns = {0, 1};

  index_t size() const { return rows.size() * columns.size(); }
};

/// Converts a part of a tensor; nothing else of it is touched. The part lies inside.   out (size)
template <class T>
void convert(const TensorEntry& tensor, const TensorPart& part, T* out) {
  const index_t rows = tensor.shape.empty() ? 1 : tensor.shape[0],
                width = rows > 0 ? tensor.size() / rows : 0;
  expects(0 <= part.rows.begin && part.rows.begin <= part.rows.end && part.rows.end <= rows &&
              0 <= part.columns.begin && part.columns.begin <= part.columns.end &&
              part.columns.end <= width,
          "convert: the part does not lie in the tensor");
  const index_t count = part.columns.size();
  if (count == width) {
    convert(tensor, Range{part.rows.begin * width, part.rows.end * width}, out);
    return;
  }
  for (index_t row = part.rows.begin; row < part.rows.end; ++row, out += count)
    convert(tensor, Range{row * width + part.columns.begin, row * width + part.columns.end}, out);
}

}  // namespace dflash
