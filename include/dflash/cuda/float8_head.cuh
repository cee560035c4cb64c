#pragma once

#include <algorithm>
#include <utility>

#include "dflash/core/float8.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/float8_rows.cuh"

namespace dflash {

/// A frozen head for products in float8: two quantised copies of it, 2 V H bytes, beside the head
/// itself, which stays where it is and must outlive them.
template <class T>
class Float8Head {
 public:
  template <class U>
  using Buffer = typename CudaBackend<T>::template Buffer<U>;

  /// Rows of the vocabulary that one tile has; a multiple of 16.
  static constexpr index_t default_tile = 8192;

  Float8Head(CudaBackend<T>& backend, In<T, 2> head, index_t tile = default_tile)
      : rows_(head),
        tile_(std::min(tile, padded_words())),
        by_word_(backend.template allocate<float8_e4m3>(padded_words() * width())),
        word_scale_(backend.template allocate<float>(padded_words())),
        by_column_(backend.template allocate<float8_e4m3>(padded_words() * width())),
        column_scale_(backend.template allocate<float>(tiles() * width())) {
    expects(tile > 0 && tile % 16 == 0, "Float8Head: a tile must be a multiple of 16");
    const index_t words = padded_words();
    cuda::quantize_rows<T>(backend, head, {by_word_.data(), {words, width()}},
                           {word_scale_.data(), {words}});
    const dim3 grid{cuda::blocks_for(width(), cuda::detail::square), unsigned(tiles())};
    cuda::launch(backend.stream(), cuda::detail::quantize_columns_kernel<T>, grid,
                 cuda::detail::float8_threads, cuda::detail::turn_bytes, head.data, words_(),
                 head.shape[1], tile_, by_column_.data(), width(), column_scale_.data());
  }

  /// The head itself.                                                                   (V, H)
  View<const T, 2> rows() const { return rows_; }
  /// H, up to whole vectors.
  index_t width() const { return cuda::padded_float8(rows_.shape[1]); }
  index_t tiles() const { return tile_ > 0 ? (words_() + tile_ - 1) / tile_ : 0; }
  /// Rows of the head in tile t, and that number up to whole vectors.
  index_t words(index_t t) const { return std::min(tile_, words_() - first(t)); }
  index_t padded_words(index_t t) const { return cuda::padded_float8(words(t)); }
  index_t largest_tile() const { return tile_; }
  /// The first row of tile t.
  index_t first(index_t t) const { return t * tile_; }

  /// Of tile t a row per word, and what it is to be multiplied by.  (padded words, width)  (words)
  const float8_e4m3* by_word(index_t t) const { return by_word_.data() + first(t) * width(); }
  const float* word_scale(index_t t) const { return word_scale_.data() + first(t); }
  /// Of tile t a row per column, likewise.                          (width, padded words)  (width)
  const float8_e4m3* by_column(index_t t) const { return by_column_.data() + first(t) * width(); }
  const float* column_scale(index_t t) const { return column_scale_.data() + t * width(); }

 private:
  index_t words_() const { return rows_.shape[0]; }
  index_t padded_words() const { return cuda::padded_float8(words_()); }

  View<const T, 2> rows_;
  index_t tile_;
  Buffer<float8_e4m3> by_word_;
  Buffer<float> word_scale_;
  Buffer<float8_e4m3> by_column_;
  Buffer<float> column_scale_;
};

/// `head` for the products of linear_cross_entropy in float8, once for all steps.
template <class T>
Float8Head<T> float8_head(CudaBackend<T>& backend, In<T, 2> head) {
  return Float8Head<T>(backend, head);
}

}  // namespace dflash
