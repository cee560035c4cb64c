#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "dflash/core/config.hpp"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/vector.cuh"

// Operations on each element alone: a function object of floats, and for each of its arguments
// where the numbers lie and whether they are read, written or both.

namespace dflash::cuda {

enum class Access { read, write, update };

/// Number i lies at place i.
template <Access access, class T>
struct Flat {
  static constexpr Access how = access;
  T* data;
  __device__ T* at(index_t i) const { return data + i; }
  bool allows(int width) const { return is_aligned(data, width); }
};

/// What one division tells of a number in a matrix.
struct Cell {
  index_t row, column;
};
__device__ __forceinline__ Cell cell(index_t i, index_t columns) {
  if ((i | columns) >> 32 == 0) {  // a division of 64 bits costs some five times as much
    const std::uint32_t row = std::uint32_t(i) / std::uint32_t(columns);
    return {index_t(row), index_t(std::uint32_t(i) - row * std::uint32_t(columns))};
  }
  return {i / columns, i % columns};
}

/// Number i of a matrix of `columns` lies in its row at `first` of a wider one.
template <Access access, class T>
struct Columns {
  static constexpr Access how = access;
  T* data;
  index_t columns, first, stride;
  __device__ T* at(index_t i) const {
    const Cell c = cell(i, columns);
    return data + c.row * stride + first + c.column;
  }
  bool allows(int width) const {
    return is_aligned(data + first, width) && columns % width == 0 && stride % width == 0;
  }
};

/// One row for all.
template <class T>
struct SameRow {
  static constexpr Access how = Access::read;
  const T* data;
  index_t columns;
  __device__ const T* at(index_t i) const { return data + cell(i, columns).column; }
  bool allows(int width) const { return is_aligned(data, width) && columns % width == 0; }
};

/// One number for each row.
template <class T>
struct PerRow {
  static constexpr Access how = Access::read;
  static constexpr bool one_for_all = true;
  const T* data;
  index_t columns;
  __device__ const T* at(index_t i) const { return data + cell(i, columns).row; }
  bool allows(int width) const { return columns % width == 0; }
};

/// The row that an id names, of `rows`; an id of none is a fault, and is not followed.
template <Access access, class T>
struct RowOf {
  static constexpr Access how = access;
  static constexpr bool may_miss = true;
  T* data;
  const std::int32_t* ids;
  index_t columns, rows;
  int* fault;
  int fault_code;
  __device__ T* at(index_t i) const {
    const Cell c = cell(i, columns);
    const std::int32_t id = ids[c.row];
    if (id >= 0 && id < rows) return data + index_t(id) * columns + c.column;
    atomicMax(fault, fault_code);
    return nullptr;
  }
  bool allows(int width) const { return is_aligned(data, width) && columns % width == 0; }
};

namespace detail {

/// `width` numbers of one argument, while a thread works on them.
template <int width, class Where>
struct Loaded {
  decltype(Where{}.at(0)) place;
  float value[width];

  __device__ __forceinline__ Loaded(const Where& where, index_t i) : place(where.at(i)) {
    if constexpr (requires { Where::one_for_all; }) {
      const float one = to_float(*place);
#pragma unroll
      for (int j = 0; j < width; ++j) value[j] = one;
    } else if constexpr (Where::how != Access::write) {
      if (is_there()) {
        load<width>(place, value);
      } else {
#pragma unroll
        for (int j = 0; j < width; ++j) value[j] = 0;
      }
    }
  }
  __device__ __forceinline__ void finish() const {
    if constexpr (Where::how != Access::read)
      if (is_there()) store<width>(value, place);
  }

 private:
  __device__ __forceinline__ bool is_there() const {
    if constexpr (requires { Where::may_miss; })
      return place != nullptr;
    else
      return true;
  }
};

template <int width, class F, class... L>
__device__ __forceinline__ void apply(const F& f, L... loaded) {
#pragma unroll
  for (int j = 0; j < width; ++j) f(loaded.value[j]...);
  (loaded.finish(), ...);
}

template <int width, class F, class... Where>
__global__ void __launch_bounds__(256) each_kernel(index_t n, F f, Where... where) {
  const index_t thread = index_t(blockIdx.x) * blockDim.x + threadIdx.x,
                step = index_t(gridDim.x) * blockDim.x * width, whole = n / width * width;
  for (index_t i = thread * width; i < whole; i += step)
    apply<width>(f, Loaded<width, Where>(where, i)...);
  if (whole + thread < n) apply<1>(f, Loaded<1, Where>(where, whole + thread)...);
}

}  // namespace detail

/// f(number i of each argument) for i in [0, n). Arguments may lie in the same place.
template <class F, class... Where>
void each(cudaStream_t stream, index_t n, F f, Where... where) {
  constexpr index_t threads = 256, most_blocks = 1 << 16;
  const auto blocks = [&](index_t width) {
    return unsigned(std::min((n + threads * width - 1) / (threads * width), most_blocks));
  };
  if ((where.allows(wide) && ...))
    launch(stream, detail::each_kernel<wide, F, Where...>, blocks(wide), unsigned(threads), 0, n, f,
           where...);
  else
    launch(stream, detail::each_kernel<1, F, Where...>, blocks(1), unsigned(threads), 0, n, f,
           where...);
}

template <class T>
Flat<Access::read, const T> read(const T* data) {
  return {data};
}
template <class T>
Flat<Access::write, T> write(T* data) {
  return {data};
}
template <class T>
Flat<Access::update, T> update(T* data) {
  return {data};
}

}  // namespace dflash::cuda
