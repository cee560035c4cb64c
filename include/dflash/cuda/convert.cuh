#pragma once

#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/each.cuh"

namespace dflash {

namespace cuda::detail {
struct Assign {
  __device__ void operator()(float x, float& y) const { y = x; }
};
}  // namespace cuda::detail

/// y = x in the type of y, rounded to nearest even where that is narrower.
template <class T, class From, class To, int Rank>
void convert(CudaBackend<T>& backend, View<From, Rank> x, View<To, Rank> y) {
  expects(x.size() == y.size(), "convert: shapes differ");
  cuda::each(backend.stream(), y.size(), cuda::detail::Assign{},
             cuda::read<std::remove_const_t<From>>(x.data), cuda::write(y.data));
}

}  // namespace dflash
