#pragma once

#include <concepts>
#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

namespace detail {

/// to = n elements of from, on this thread.
template <class From, class To>
void convert_elements(const From* from, index_t n, To* to) {
  constexpr bool builtin = std::floating_point<From> && std::floating_point<To>;
  using Step = std::conditional_t<builtin, To, float>;  // storage types convert from and to float
  for (index_t i = 0; i < n; ++i) to[i] = To(static_cast<Step>(from[i]));
}

}  // namespace detail

/// y = x in the type of y, rounded to nearest even where that is narrower.
template <class T, class From, class To, int Rank>
void convert(CpuBackend<T>& backend, View<From, Rank> x, View<To, Rank> y) {
  expects(x.size() == y.size(), "convert: shapes differ");
  backend.for_parts(y.size(), 1, [=](Range part) {
    detail::convert_elements(x.data + part.begin, part.size(), y.data + part.begin);
  });
}

}  // namespace dflash
