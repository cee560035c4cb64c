#pragma once

#include <span>
#include <type_traits>

#include "dflash/core/error.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// Heads [first, first + count) of every row, as (rows, count, D) at `data`.
template <class T>
struct HeadPart {
  T* data;
  index_t first, count;
};

/// Where heads go: each to every part that takes it, to several or to none.
template <class T>
using HeadPlaces = std::span<const HeadPart<std::type_identity_t<T>>>;

/// The part that is all heads of a tensor.                                    x (N, heads, D)
template <class T>
HeadPart<T> all_heads(View<T, 3> x) {
  return {x.data, 0, x.shape[1]};
}

namespace detail {

/// The shapes that rms_norm_rope and its backward have in common.
template <class T>
void expect_turned_heads(In<T, 3> x, In<T, 1> w, In<T, 2> cos, In<T, 2> sin, index_t rstd) {
  const index_t rows = x.shape[0], heads = x.shape[1], dim = x.shape[2];
  expects(dim % 2 == 0 && w.shape[0] == dim && rstd == rows * heads,
          "rms_norm_rope: a head must have an even size, and w and rstd must fit");
  expects(cos.shape[0] == rows && sin.shape[0] == rows && 2 * cos.shape[1] == dim &&
              2 * sin.shape[1] == dim,
          "rms_norm_rope: cos and sin must have a row for each of x, and D / 2 columns");
}
/// That each part takes heads that there are.
template <class T>
void expect_places(HeadPlaces<T> places, index_t heads) {
  for (const HeadPart<T>& part : places)
    expects(part.first >= 0 && part.count >= 0 && part.first + part.count <= heads,
            "rms_norm_rope: a part takes heads that there are not");
}

}  // namespace detail

}  // namespace dflash
