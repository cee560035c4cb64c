#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dflash/model/draft_model.hpp"
#include "dflash/model/key_value_cache.hpp"

namespace dflash {

/// Which rule sliding layers of a draft follow when they propose tokens.
enum class SlidingLayers {
  as_trained,    // the window, and causal inside the block: what serving engines do
  as_published,  // none, as the published Python decoders run them
};

/// A trained draft at work: it keeps keys and values of the context it has seen, and proposes the
/// tokens of one block at a time. The model and its weights outlive it.
template <class Model>
class DraftDecoder {
 public:
  using B = typename Model::B;
  using T = typename B::value_type;

  DraftDecoder(const Model& model, const Parameters<B>& weights,
               SlidingLayers sliding = SlidingLayers::as_trained)
      : model_(&model),
        weights_(&weights),
        sliding_(sliding),
        cache_(model.backend(), model.config().layers, model.config().shape.kv_heads,
               model.config().shape.head_dim) {}

  index_t block_size() const { return model_->config().block_size; }
  index_t context_length() const { return cache_.length(); }

  /// Forgets the context.
  void clear() { cache_.truncate(0); }

  /// Appends the target's features of the positions that follow.        features (n, C * H)
  void extend(In<T, 2> features) {
    const index_t n = features.shape[0], held = cache_.length();
    if (n == 0) return;
    const auto rope = tables(held, n);
    typename Model::Matrix fused;
    StoredTensor<B> context;
    typename Model::Vector rstd;
    model_->fuse(*weights_, features, fused, context, rstd);
    cache_.prepare(n);
    const BlockGeometry<T> at{rope.cos.view(), rope.sin.view(), {}, {}, {}};
    for (index_t layer = 0; layer < model_->config().layers; ++layer) {
      typename Model::BlockType::ContextSaved saved;
      const View<T, 3> k = cache_.k(layer, held + n).rows({held, held + n}),
                       v = cache_.v(layer, held + n).rows({held, held + n});
      model_->block().project_context((**weights_).layers[std::size_t(layer)], context.rows(), at,
                                      {{}, {all_heads(k)}, {all_heads(v)}}, saved);
    }
    cache_.append(n);
  }

  /// The hidden states of a block that starts behind the context, from the embeddings of its tokens
  /// (one that is known, then masks).                                        x, result (K, H)
  typename Model::Matrix block(typename Model::Matrix x) {
    B& backend = model_->backend();
    const index_t k = block_size(), length = cache_.length();
    expects(x.view().shape[0] == k, "DraftDecoder: x must have as many rows as a block");
    const index_t zero = 0;
    const auto begin = uploaded(backend, &zero, 1), end = uploaded(backend, &length, 1);
    const auto rope = tables(length, k);
    for (index_t layer = 0; layer < model_->config().layers; ++layer) {
      BlockGeometry<T> at{{}, {}, rope.cos.view(), rope.sin.view(), {begin.view(), end.view(), k}};
      if (sliding_ == SlidingLayers::as_trained)
        at.mask.window = model_->config().layer_window(layer);
      at.mask.context_total = length;
      typename Model::BlockType::Saved saved;
      typename Model::BlockType::AttentionType::Context context;
      model_->block().attention().use_context(cache_.k(layer, length), cache_.v(layer, length),
                                              context);
      x = model_->block().forward((**weights_).layers[std::size_t(layer)], x.view(), at, context,
                                  saved);
    }
    typename Model::Matrix y(backend, {k, model_->config().shape.hidden});
    typename Model::Vector rstd;
    model_->final_norm(*weights_, x.view(), y.view(), rstd);
    return y;
  }

 private:
  typename Model::RopeTables tables(index_t first, index_t n) const {
    std::vector<index_t> positions(static_cast<std::size_t>(n));
    for (index_t i = 0; i < n; ++i) positions[std::size_t(i)] = first + i;
    const auto there = uploaded(model_->backend(), positions.data(), n);
    return model_->rope_tables(there.view());
  }

  const Model* model_;
  const Parameters<B>* weights_;
  SlidingLayers sliding_;
  KeyValueCache<B> cache_;
};

}  // namespace dflash
