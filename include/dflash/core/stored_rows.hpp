#pragma once

#include <concepts>
#include <type_traits>
#include <utility>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// Rows as they lie in memory: in T or, where T is float, maybe in bfloat16. Most files have
/// matrices and hidden states so, and products that round what they read may as well find it
/// rounded: products with either have the same bits.                                       (N, I)
template <class T>
class StoredRows {
  using Wide = std::remove_const_t<T>;
  template <class U>
  using Like = std::conditional_t<std::is_const_v<T>, const U, U>;
  static constexpr bool has_narrow = std::same_as<Wide, float>;

 public:
  index_t shape[2] = {};

  StoredRows() = default;
  StoredRows(T* data, const index_t (&extents)[2]) : StoredRows(data, false, extents) {}
  StoredRows(View<T, 2> wide) : StoredRows(wide.data, wide.shape) {}
  StoredRows(View<Wide, 2> wide) requires(std::is_const_v<T>) : StoredRows(wide.data, wide.shape) {}
  StoredRows(View<Like<bfloat16>, 2> narrow) requires has_narrow
      : StoredRows(narrow.data, true, narrow.shape) {}
  StoredRows(View<bfloat16, 2> narrow) requires(has_narrow&& std::is_const_v<T>)
      : StoredRows(narrow.data, true, narrow.shape) {}
  /// The same rows, read-only.
  template <std::same_as<Wide> U>
  requires(std::is_const_v<T>) StoredRows(const StoredRows<U>& rows)
      : StoredRows(rows.visit([](const auto& view) { return StoredRows(view); })) {}

  /// Whether they lie in bfloat16 where T is float.
  bool narrow() const { return narrow_; }
  index_t size() const { return shape[0] * shape[1]; }

  /// f(a view of the rows in the type that they lie in).
  template <class F>
  decltype(auto) visit(F&& f) const {
    if constexpr (has_narrow)
      if (narrow_) return f(view_of<bfloat16>());
    return f(view_of<Wide>());
  }

  /// The same rows, which lie in T.
  View<T, 2> wide() const {
    expects(!narrow_,
            "StoredRows: the rows lie in bfloat16, which not every operation takes; of weights, "
            "WeightStorage::wide loads them in float");
    return view_of<Wide>();
  }
  operator View<const Wide, 2>() const { return wide(); }
  operator View<Wide, 2>() const requires(!std::is_const_v<T>) { return wide(); }

  /// Rows [begin, end).
  StoredRows rows(Range range) const {
    return visit([&](const auto& view) { return StoredRows(view.rows(range)); });
  }

 private:
  StoredRows(Like<void>* data, bool narrow, const index_t (&extents)[2])
      : shape{extents[0], extents[1]}, data_(data), narrow_(narrow) {}

  template <class U>
  View<Like<U>, 2> view_of() const {
    return {static_cast<Like<U>*>(data_), {shape[0], shape[1]}};
  }

  Like<void>* data_ = nullptr;
  bool narrow_ = false;
};

/// How an operation names such rows among its arguments: what it reads, and what it writes.
template <class T>
using InRows = StoredRows<const std::type_identity_t<T>>;
template <class T>
using OutRows = StoredRows<std::type_identity_t<T>>;

/// A backend with operations on rows in bfloat16 beside its own type.
template <class B>
concept KeepsBfloat16Rows = std::same_as<typename B::value_type, float> && requires(const B& b) {
  requires B::keeps_bfloat16_rows;
  { b.products_round() } -> std::same_as<bool>;  // whether they round what they read to bfloat16
};

/// Owns such rows: in the backend's type or, where the backend keeps those, in bfloat16.   (N, I)
template <Backend B>
class StoredTensor {
 public:
  using T = typename B::value_type;

  StoredTensor() = default;
  StoredTensor(Tensor<B, T, 2> wide) : wide_(std::move(wide)) {}
  StoredTensor(Tensor<B, bfloat16, 2> narrow) requires KeepsBfloat16Rows<B>
      : narrow_(std::move(narrow)), is_narrow_(true) {}

  StoredRows<const T> rows() const { return rows_of(*this); }
  StoredRows<T> rows() { return rows_of(*this); }
  index_t size() const { return rows().size(); }

 private:
  template <class Self>
  static StoredRows<std::conditional_t<std::is_const_v<Self>, const T, T>> rows_of(Self& self) {
    if constexpr (KeepsBfloat16Rows<B>)
      if (self.is_narrow_) return self.narrow_.view();
    return self.wide_.view();
  }

  Tensor<B, T, 2> wide_;
  Tensor<B, bfloat16, 2> narrow_;  // or these
  bool is_narrow_ = false;
};

/// Room for rows that only the products of linear layers will read: in bfloat16 where those round
/// what they read.
template <Backend B>
StoredTensor<B> rows_for_products(B& backend, index_t rows, index_t columns) {
  if constexpr (KeepsBfloat16Rows<B>)
    if (backend.products_round()) return Tensor<B, bfloat16, 2>(backend, {rows, columns});
  return Tensor<B, typename B::value_type, 2>(backend, {rows, columns});
}

}  // namespace dflash
