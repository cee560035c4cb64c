#pragma once

#include <concepts>
#include <type_traits>
#include <utility>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// Rows that training does not change (a target's matrix, its hidden states), as they lie in
/// memory: in T or, where T is float, maybe in bfloat16, as most files have them. Products with
/// either have the same bits.                                                              (N, I)
template <class T>
class FrozenRows {
 public:
  index_t shape[2] = {};

  FrozenRows() = default;
  FrozenRows(const T* data, const index_t (&extents)[2]) : FrozenRows(data, false, extents) {}
  FrozenRows(View<const T, 2> wide) : FrozenRows(wide.data, wide.shape) {}
  FrozenRows(View<T, 2> wide) : FrozenRows(View<const T, 2>(wide)) {}
  FrozenRows(View<const bfloat16, 2> narrow) requires(std::same_as<T, float>)
      : FrozenRows(narrow.data, true, narrow.shape) {}
  FrozenRows(View<bfloat16, 2> narrow) requires(std::same_as<T, float>)
      : FrozenRows(View<const bfloat16, 2>(narrow)) {}

  /// Whether they lie in bfloat16 where T is float.
  bool narrow() const { return narrow_; }
  index_t size() const { return shape[0] * shape[1]; }

  /// f(a view of the rows in the type that they lie in).
  template <class F>
  decltype(auto) visit(F&& f) const {
    if constexpr (std::same_as<T, float>)
      if (narrow_) return f(view_of<bfloat16>());
    return f(view_of<T>());
  }

  /// The same rows, which lie in T.
  View<const T, 2> wide() const {
    expects(!narrow_,
            "FrozenRows: the rows lie in bfloat16, which not every operation takes; of weights, "
            "WeightStorage::wide loads them in float");
    return view_of<T>();
  }
  operator View<const T, 2>() const { return wide(); }

  /// Rows [begin, end).
  FrozenRows rows(Range range) const {
    return visit([&](const auto& view) { return FrozenRows(view.rows(range)); });
  }

 private:
  FrozenRows(const void* data, bool narrow, const index_t (&extents)[2])
      : shape{extents[0], extents[1]}, data_(data), narrow_(narrow) {}

  template <class U>
  View<const U, 2> view_of() const {
    return {static_cast<const U*>(data_), {shape[0], shape[1]}};
  }

  const void* data_ = nullptr;
  bool narrow_ = false;
};

/// How an operation names frozen rows among its arguments.
template <class T>
using InRows = FrozenRows<std::type_identity_t<T>>;

/// A backend with operations on frozen rows in bfloat16 beside its own type.
template <class B>
concept KeepsBfloat16Rows = std::same_as<typename B::value_type, float> && requires {
  requires B::keeps_bfloat16_rows;
};

/// Owns such rows: in the backend's type or, where the backend keeps those, in bfloat16.   (N, I)
template <Backend B>
class FrozenTensor {
 public:
  using T = typename B::value_type;

  FrozenTensor() = default;
  FrozenTensor(Tensor<B, T, 2> wide) : wide_(std::move(wide)) {}
  FrozenTensor(Tensor<B, bfloat16, 2> narrow) requires KeepsBfloat16Rows<B>
      : narrow_(std::move(narrow)), is_narrow_(true) {}

  FrozenRows<T> rows() const {
    if constexpr (KeepsBfloat16Rows<B>)
      if (is_narrow_) return narrow_.view();
    return wide_.view();
  }
  index_t size() const { return rows().size(); }

 private:
  Tensor<B, T, 2> wide_;
  Tensor<B, bfloat16, 2> narrow_;  // or these
  bool is_narrow_ = false;
};

}  // namespace dflash
