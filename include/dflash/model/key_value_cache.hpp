#pragma once

#include <algorithm>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// Keys and values of the rows that one sequence has so far, of every layer; grows as needed.
template <Backend B>
class KeyValueCache {
 public:
  using T = typename B::value_type;

  KeyValueCache(B& backend, index_t layers, index_t kv_heads, index_t head_dim)
      : backend_(&backend), kv_heads_(kv_heads), head_dim_(head_dim) {
    // No head: a rank of many may hold none.
    expects(layers >= 0 && kv_heads >= 0 && head_dim > 0, "KeyValueCache: a size is negative");
    layers_.resize(std::size_t(layers));
  }

  index_t layers() const { return index_t(layers_.size()); }
  index_t length() const { return length_; }      // rows held
  index_t capacity() const { return capacity_; }  // rows there is memory for

  /// Makes room for `rows` rows in all; those held stay.
  void reserve(index_t rows) {
    if (rows <= capacity_) return;
    for (Layer& layer : layers_) grow(layer, rows);
    capacity_ = rows;
  }

  /// The first `rows` rows of a layer, room for new ones included.    (rows, kv heads, D)
  View<T, 3> k(index_t layer, index_t rows) { return at(layer).k.view().rows({0, rows}); }
  View<T, 3> v(index_t layer, index_t rows) { return at(layer).v.view().rows({0, rows}); }

  /// Room for `rows` more rows, behind those held; append makes them held.
  void prepare(index_t rows) {
    if (length_ + rows > capacity_) reserve(std::max(length_ + rows, 2 * capacity_));
  }
  void append(index_t rows) {
    expects(rows >= 0 && length_ + rows <= capacity_, "KeyValueCache: append without room");
    length_ += rows;
  }

  /// Forgets the rows from `length` on.
  void truncate(index_t length) {
    expects(length >= 0 && length <= length_, "KeyValueCache: cannot truncate to more rows");
    length_ = length;
  }

 private:
  struct Layer {
    Tensor<B, T, 3> k, v;
  };

  Layer& at(index_t layer) { return layers_[std::size_t(layer)]; }

  void grow(Layer& layer, index_t rows) {
    for (Tensor<B, T, 3>* tensor : {&layer.k, &layer.v}) {
      Tensor<B, T, 3> larger(*backend_, {rows, kv_heads_, head_dim_});
      if (length_ > 0)
        backend_->copy(tensor->view().data, larger.view().data, length_ * larger.view().stride());
      *tensor = std::move(larger);
    }
  }

  B* backend_;
  index_t kv_heads_, head_dim_, length_ = 0, capacity_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace dflash
