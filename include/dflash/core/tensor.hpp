#pragma once

#include <concepts>
#include <type_traits>
#include <utility>

#include "dflash/core/backend.hpp"
#include "dflash/core/config.hpp"

namespace dflash {

/// A row-major window onto memory somebody else owns. Cheap to copy; passed by value, also to
/// kernels.
template <class T, int Rank>
struct View {
  T* data = nullptr;
  index_t shape[Rank] = {};

  DFLASH_HOST_DEVICE index_t size() const {
    index_t n = 1;
    for (index_t extent : shape) n *= extent;
    return n;
  }

  /// Elements of one step along the first dimension.
  DFLASH_HOST_DEVICE index_t stride() const {
    index_t n = 1;
    for (int d = 1; d < Rank; ++d) n *= shape[d];
    return n;
  }

  template <class... I>
  DFLASH_HOST_DEVICE T& operator()(I... i) const {
    static_assert(sizeof...(I) == Rank);
    const index_t at[] = {index_t(i)...};
    index_t offset = at[0];
    for (int d = 1; d < Rank; ++d) offset = offset * shape[d] + at[d];
    return data[offset];
  }

  /// The same elements [begin, end) of the first dimension.
  DFLASH_HOST_DEVICE View rows(Range range) const {
    View part = *this;
    part.data = data + range.begin * stride();
    part.shape[0] = range.size();
    return part;
  }

  /// To the same window, read-only.
  template <std::same_as<const T> U>
  requires(!std::is_const_v<T>) DFLASH_HOST_DEVICE operator View<U, Rank>() const {
    View<const T, Rank> v;
    v.data = data;
    for (int d = 0; d < Rank; ++d) v.shape[d] = shape[d];
    return v;
  }
};

/// How an operation names its arguments: what it reads, and what it writes or adds to.
template <class T, int Rank>
using In = View<const std::type_identity_t<T>, Rank>;
template <class T, int Rank>
using Out = View<std::type_identity_t<T>, Rank>;

/// Same memory, other shape.
template <int To, class T, int From>
View<T, To> reshape(View<T, From> v, const index_t (&shape)[To]) {
  View<T, To> r;
  r.data = v.data;
  for (int d = 0; d < To; ++d) r.shape[d] = shape[d];
  return r;
}

/// (N, heads * D) as (N, heads, D).
template <class T>
View<T, 3> as_heads(View<T, 2> v, index_t head_dim) {
  return reshape<3>(v, {v.shape[0], v.shape[1] / head_dim, head_dim});
}

/// (N, heads * D) as (N * heads, D).
template <class T>
View<T, 2> per_head(View<T, 2> v, index_t head_dim) {
  return reshape<2>(v, {v.size() / head_dim, head_dim});
}

/// Owns backend memory and its shape. Moves, never copies: a copy would hide a transfer.
template <Backend B, class T, int Rank>
class Tensor {
 public:
  Tensor() = default;
  /// Uninitialised memory of the given shape.
  Tensor(B& backend, const index_t (&shape)[Rank]) {
    for (int d = 0; d < Rank; ++d) view_.shape[d] = shape[d];
    storage_ = backend.template allocate<T>(view_.size());
    view_.data = storage_.data();
  }
  Tensor(Tensor&& o) noexcept
      : storage_(std::move(o.storage_)), view_(std::exchange(o.view_, {})) {}
  Tensor& operator=(Tensor&& o) noexcept {
    storage_ = std::move(o.storage_);
    view_ = std::exchange(o.view_, {});
    return *this;
  }

  View<T, Rank> view() { return view_; }
  View<const T, Rank> view() const { return view_; }
  index_t size() const { return view_.size(); }

 private:
  typename B::template Buffer<T> storage_;
  View<T, Rank> view_;
};

/// A tensor that holds a copy of host memory.
template <Backend B, class T>
Tensor<B, T, 1> uploaded(B& backend, const T* host, index_t n) {
  Tensor<B, T, 1> t(backend, {n});
  backend.upload(host, t.view().data, n);
  return t;
}

}  // namespace dflash
