#pragma once

#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/host_copy.hpp"
#include "dflash/core/tensor.hpp"

namespace golden {

/// The type in which the host looks at numbers of type T.
template <class T>
using Number = std::conditional_t<std::is_same_v<std::remove_const_t<T>, dflash::bfloat16>, float,
                                  std::remove_const_t<T>>;

/// A copy of the backend's memory.
template <class B, class T, int Rank>
std::vector<Number<T>> host(B& backend, dflash::View<T, Rank> v) {
  std::vector<Number<T>> numbers;
  for (const auto& x : dflash::downloaded(backend, v)) numbers.push_back(static_cast<Number<T>>(x));
  return numbers;
}

/// Numbers of a case, in the backend's type and memory.
template <class B, class U>
dflash::Tensor<B, typename B::value_type, 1> there(B& backend, const std::vector<U>& numbers) {
  using T = typename B::value_type;
  std::vector<T> stored;
  for (const U& x : numbers) stored.push_back(T(x));
  return dflash::uploaded(backend, stored.data(), dflash::index_t(stored.size()));
}

/// |actual - expected| / |expected|, of vectors.
template <class T, class U>
double relative_error(const std::vector<T>& actual, const std::vector<U>& expected) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double(actual[i]) - double(expected[i]), 2);
    size += std::pow(double(expected[i]), 2);
  }
  return std::sqrt(difference / size);
}

}  // namespace golden
