#pragma once

#include <concepts>
#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// y = x in the type of y, rounded to nearest even where that is narrower.
template <class T, class From, class To, int Rank>
void convert(CpuBackend<T>& backend, View<From, Rank> x, View<To, Rank> y) {
  expects(x.size() == y.size(), "convert: shapes differ");
  constexpr bool builtin =
      std::floating_point<std::remove_const_t<From>> && std::floating_point<To>;
  using Step = std::conditional_t<builtin, To, float>;  // storage types convert from and to float
  backend.for_parts(y.size(), 1, [=](Range part) {
    for (index_t i = part.begin; i < part.end; ++i) y.data[i] = To(static_cast<Step>(x.data[i]));
  });
}

}  // namespace dflash
