#pragma once

#include <utility>
#include <vector>

#include "dflash/core/host_vector.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/data/batch.hpp"
#include "dflash/model/parameters.hpp"

namespace dflash {

/// The frozen ends of the target that a draft shares: token embedding and language-model head.
///                                                     both (V, H)
template <class M, class B>
concept SharedEnds = requires(const M& target) {
  { target.embedding() } -> std::convertible_to<StoredRows<const typename B::value_type>>;
  { target.lm_head() } -> std::convertible_to<StoredRows<const typename B::value_type>>;
};

/// For those who do not look at gradients before backward is over.
struct IgnoreBuckets {
  void operator()(index_t) const {}
};

/// A DFlash draft model (arXiv:2602.06036): fused target features as context, blocks of an anchor
/// and masks as queries, `layers` blocks, and a final norm. The target's head follows it.
template <class Block>
class DraftModel {
 public:
  using B = typename Block::B;
  using T = typename B::value_type;
  using BlockType = Block;
  using Weights = Parameters<B>;
  using Matrix = Tensor<B, T, 2>;
  using Sum = typename B::accumulator_type;
  using Vector = Tensor<B, Sum, 1>;

  struct RopeTables {
    Matrix cos, sin;  // (rows, D / 2)
  };
  struct Saved {
    RopeTables context_rope, block_rope;
    Matrix fused;             // (S, H)
    StoredTensor<B> context;  // the same, normalised
    Vector context_rstd;
    HostVector<Matrix> x;  // (N * K, H): the input of each layer, and of the final norm
    HostVector<typename Block::ContextSaved> context_layers;
    HostVector<typename Block::Saved> layers;
    Vector rstd;
    Matrix output;  // (N * K, H)
  };

  DraftModel(Block block, DraftConfig config)
      : block_(std::move(block)),
        config_(std::move(config)),
        frequencies_(config_.rope.inverse_frequencies(config_.shape.head_dim)) {}

  const DraftConfig& config() const { return config_; }
  const Block& block() const { return block_; }
  B& backend() const { return block_.backend(); }

  /// The draft's hidden states of the batch's block rows, in saved.output. `embedding` (V, H) is
  /// the target's.
  void forward(const Weights& weights, InRows<T> embedding, const Batch<B>& batch, Saved& s) const {
    Matrix x(backend(), {batch.tokens.size(), config_.shape.hidden});
    gather_rows(backend(), embedding, batch.tokens.view(), x.view());
    forward_embedded(weights, std::move(x), batch, s);
  }

  /// The same of block rows whose tokens are embedded already.                       x (N * K, H)
  void forward_embedded(const Weights& weights, Matrix x, const Batch<B>& batch, Saved& s) const {
    const auto& w = *weights;
    s.context_rope = rope_tables(batch.context_position.view());
    s.block_rope = rope_tables(batch.block_position.view());
    fuse(weights, batch.features.rows(), s.fused, s.context, s.context_rstd);

    s.x.clear();
    s.x.push_back(std::move(x));
    s.context_layers.resize(w.layers.size());
    s.layers.resize(w.layers.size());
    // The next layer's context is on its way while this layer computes.
    const auto begin_context = [&](std::size_t i) {
      if (i < w.layers.size())
        block_.begin_context(w.layers[i], s.context.rows(), geometry(batch, s, i),
                             s.context_layers[i]);
    };
    begin_context(0);
    for (std::size_t i = 0; i < w.layers.size(); ++i) {
      begin_context(i + 1);
      s.x.push_back(block_.forward(w.layers[i], s.x.back().view(), geometry(batch, s, i),
                                   s.context_layers[i].attention, s.layers[i]));
    }
    s.output = Matrix(backend(), {batch.tokens.size(), config_.shape.hidden});
    final_norm(weights, s.x.back().view(), s.output.view(), s.rstd);
  }

  /// Adds to the gradients, or writes them, and calls is_final(i) when it is done with bucket i of
  /// gradient_buckets, in their order.                                       doutput (N * K, H)
  template <class IsFinal = IgnoreBuckets>
  void backward(const Weights& weights, const Batch<B>& batch, Saved& s, In<T, 2> doutput,
                Gradients<B>& gradients, const IsFinal& is_final = {},
                Result result = Result::added) const {
    const auto& w = *weights;
    auto& g = *gradients;
    if (result == Result::written) {
      fill(backend(), g.norm, Sum(0));
      fill(backend(), g.hidden_norm, Sum(0));
    }
    Matrix dy = zeros(s.output), dcontext = zeros(s.fused);
    rms_norm_backward(backend(), s.x.back().view(), w.norm, s.rstd.view(), doutput, dy.view(),
                      g.norm);
    const auto end_context = [&](std::size_t i) {
      if (i >= w.layers.size()) return;
      block_.end_context(w.layers[i], geometry(batch, s, i), s.context_layers[i], g.layers[i],
                         dcontext.view());
      is_final(index_t(w.layers.size() - 1 - i));
    };
    for (std::size_t i = w.layers.size(); i-- > 0;) {
      dy = block_.backward(w.layers[i], std::move(dy), geometry(batch, s, i),
                           s.context_layers[i].attention, s.layers[i], g.layers[i], result);
      end_context(i + 1);
    }
    end_context(0);
    Matrix dfused = zeros(s.fused);
    rms_norm_backward(backend(), s.fused.view(), w.hidden_norm, s.context_rstd.view(),
                      dcontext.view(), dfused.view(), g.hidden_norm);
    linear_backward_weight(backend(), dfused.view(), batch.features.rows(), g.fc, result);
    is_final(index_t(w.layers.size()));
  }

  /// context = hidden_norm(fc(features)): what all layers see of the target.
  ///                                                 features (S, C * H)  fused, context (S, H)
  void fuse(const Weights& weights, InRows<T> features, Matrix& fused, StoredTensor<B>& context,
            Vector& rstd) const {
    const index_t rows = features.shape[0], hidden = config_.shape.hidden;
    fused = Matrix(backend(), {rows, hidden});
    context = rows_for_products(backend(), rows, hidden);
    rstd = Vector(backend(), {rows});
    linear(backend(), features, (*weights).fc, fused.view());
    rms_norm(backend(), fused.view(), (*weights).hidden_norm, Sum(config_.shape.eps),
             context.rows(), rstd.view());
  }

  void final_norm(const Weights& weights, In<T, 2> x, Out<T, 2> y, Vector& rstd) const {
    rstd = Vector(backend(), {x.shape[0]});
    rms_norm(backend(), x, (*weights).norm, Sum(config_.shape.eps), y, rstd.view());
  }

  /// cos and sin of each row's rotation.                positions (rows)
  RopeTables rope_tables(View<const index_t, 1> positions) const {
    const index_t half = config_.shape.head_dim / 2;
    RopeTables tables{Matrix(backend(), {positions.size(), half}),
                      Matrix(backend(), {positions.size(), half})};
    const auto frequency = uploaded(backend(), frequencies_.data(), half);
    rope_table(backend(), positions, frequency.view(), config_.rope.attention_factor,
               tables.cos.view(), tables.sin.view());
    return tables;
  }

 private:
  BlockGeometry<T> geometry(const Batch<B>& batch, const Saved& s, std::size_t layer) const {
    BlockGeometry<T> at{s.context_rope.cos.view(), s.context_rope.sin.view(),
                        s.block_rope.cos.view(), s.block_rope.sin.view(), batch.mask()};
    at.mask.window = config_.layer_window(index_t(layer));
    return at;
  }
  Matrix zeros(const Matrix& like) const {
    Matrix t(backend(), {like.view().shape[0], like.view().shape[1]});
    fill(backend(), t.view(), T(0));
    return t;
  }

  Block block_;
  DraftConfig config_;
  std::vector<double> frequencies_;  // (D / 2)
};

}  // namespace dflash
