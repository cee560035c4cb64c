#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dflash/core/operations.hpp"
#include "dflash/model/decoder_layer.hpp"
#include "dflash/model/frozen_linear.hpp"
#include "dflash/model/frozen_target.hpp"
#include "dflash/model/key_value_cache.hpp"
#include "dflash/model/target_config.hpp"
#include "dflash/model/target_cut.hpp"
#include "dflash/model/vocabulary_parallel.hpp"

namespace dflash {

/// Rows whose logits a forward hands back: no row, the last of each sample, or every one.
enum class Logits { none, last, all };

/// What a forward of the target is to hand back.
struct TargetRequest {
  std::vector<index_t>
      layers;                // features: the outputs of these layers, side by side, in this order
  bool last_hidden = false;  // the last layer's output after the final norm
  Logits logits = Logits::none;
};

/// What it hands back; what was not asked for is empty.
template <Backend B>
struct TargetOutput {
  Tensor<B, typename B::value_type, 2> features;     // (n, C * H)
  Tensor<B, typename B::value_type, 2> last_hidden;  // (n, H)
  Tensor<B, typename B::value_type, 2> logits;       // (rows asked for, V)
};

/// A target language model (Qwen3, Qwen2 or Llama), frozen: prefill of many samples at once, with
/// the hidden states that a draft learns from, and cached decoding of one. On the CPU the bits of a
/// row depend on the tokens up to it alone: not on the samples beside it, nor on how many tokens
/// come at once. On a GPU how products and attention are summed depends on the number of rows.
///
/// On a tensor-parallel group each rank holds a TargetCut of the weights and of the keys; all ranks
/// call the same functions with the same arguments, and get the same, whole results.
template <Backend B, Communicator C = SingleProcess>
class TargetModel {
 public:
  using T = typename B::value_type;

  /// Loads a Hugging Face model folder. Error naming the file and what is wrong in it.
  TargetModel(
      B& backend, const std::filesystem::path& folder,
      WeightStorage storage = WeightStorage::as_stored) requires(std::same_as<C, SingleProcess>)
      : TargetModel(backend, TargetConfig::read(folder), WeightsFolder(folder), storage) {}

  /// Loads a model from other weights, under the names of the folder's.
  template <WeightSource W>
  TargetModel(
      B& backend, TargetConfig config, const W& weights,
      WeightStorage storage = WeightStorage::as_stored) requires(std::same_as<C, SingleProcess>)
      : TargetModel(backend, std::make_unique<TensorParallelGroup<C>>(), nullptr, std::move(config),
                    weights, storage) {}

  /// Loads this rank's parts alone. The group outlives the model.
  TargetModel(B& backend, TensorParallelGroup<C>& group, const std::filesystem::path& folder,
              WeightStorage storage = WeightStorage::as_stored)
      : TargetModel(backend, group, TargetConfig::read(folder), WeightsFolder(folder), storage) {}
  template <WeightSource W>
  TargetModel(B& backend, TensorParallelGroup<C>& group, TargetConfig config, const W& weights,
              WeightStorage storage = WeightStorage::as_stored)
      : TargetModel(backend, nullptr, &group, std::move(config), weights, storage) {}

  B& backend() const { return *backend_; }
  const TargetConfig& config() const { return config_; }
  const FrozenTarget<B>& ends() const { return ends_; }
  StoredRows<const T> embedding() const { return ends_.embedding(); }  // (V, H), this rank's rows
  StoredRows<const T> lm_head() const { return ends_.lm_head(); }      // the same
  const TargetCut& cut() const { return cut_; }
  TensorParallelGroup<C>& group() const { return *group_; }

  /// An empty cache for one sequence.
  KeyValueCache<B> cache() const {
    return {*backend_, config_.layers, cut_.kv_heads.size(), config_.head_dim};
  }

  /// Runs whole samples, laid end to end; sample i has the tokens [offsets(i), offsets(i + 1)).
  /// Stops after the last layer that the request needs.
  TargetOutput<B> prefill(std::span<const std::int32_t> tokens, std::span<const index_t> offsets,
                          const TargetRequest& request) const {
    check_offsets(tokens, offsets);
    Rows rows;
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
      for (index_t row = offsets[i]; row < offsets[i + 1]; ++row)
        rows.add(row - offsets[i], offsets[i], row + 1);
    for (const index_t end : offsets.subspan(1)) rows.last.push_back(std::int32_t(end - 1));
    // Keys are of use within their layer only: one layer's memory serves all.
    const index_t n = index_t(tokens.size());
    Tensor<B, T, 3> k(*backend_, {n, cut_.kv_heads.size(), config_.head_dim}),
        v(*backend_, {n, cut_.kv_heads.size(), config_.head_dim});
    return run(tokens, rows, layers_needed(request), request, [&](index_t) {
      return DecoderKeys<T>{k.view(), v.view(), 0};
    });
  }

  /// Runs the next tokens of one sequence and keeps their keys in the cache.
  TargetOutput<B> forward(std::span<const std::int32_t> tokens, KeyValueCache<B>& cache,
                          const TargetRequest& request) const {
    expects(!tokens.empty(), "TargetModel: forward needs at least one token");
    expects(cache.layers() == config_.layers, "TargetModel: the cache is of another model");
    const index_t n = index_t(tokens.size()), held = cache.length();
    Rows rows;
    for (index_t row = held; row < held + n; ++row) rows.add(row, 0, row + 1);
    rows.last.push_back(std::int32_t(n - 1));
    cache.prepare(n);
    auto output = run(tokens, rows, config_.layers, request, [&](index_t layer) {
      return DecoderKeys<T>{cache.k(layer, held + n), cache.v(layer, held + n), held};
    });
    cache.append(n);
    return output;
  }

  /// The embeddings of some tokens, whole on every rank. Error if one is outside the vocabulary.
  ///                                                                               result (n, H)
  Tensor<B, T, 2> embed(std::span<const std::int32_t> tokens) const {
    for (std::size_t i = 0; i < tokens.size(); ++i)
      if (tokens[i] < 0 || tokens[i] >= config_.vocabulary)
        throw Error("token " + std::to_string(tokens[i]) + " at row " + std::to_string(i) +
                    " is outside the target's vocabulary of " + std::to_string(config_.vocabulary));
    Tensor<B, T, 2> x(*backend_, {index_t(tokens.size()), config_.hidden});
    gather_vocabulary_rows(*backend_, *group_, ends_.embedding_slice(), tokens, x.view());
    return x;
  }

  /// The head's logits of rows that have passed a final norm, the target's or a draft's.
  ///                                                             hidden (n, H)  result (n, V)
  Tensor<B, T, 2> head_logits(In<T, 2> hidden) const {
    // Capture has no use for the head in the order of products: it is made when first needed.
    std::call_once(head_->made, [&] { head_->matrix = freeze(*backend_, lm_head(), storage_); });
    Tensor<B, T, 2> y(*backend_, {hidden.shape[0], cut_.vocabulary.size()});
    linear(*backend_, hidden, *head_->matrix, y.view());
    return gather_columns(*backend_, *group_, std::move(y), config_.vocabulary);
  }

 private:
  using Activations = Tensor<B, T, 2>;
  using Group = TensorParallelGroup<C>;

  template <WeightSource W>
  TargetModel(B& backend, std::unique_ptr<Group> own, Group* group, TargetConfig config,
              const W& weights, WeightStorage storage)
      : backend_(&backend),
        own_group_(std::move(own)),
        group_(group != nullptr ? group : own_group_.get()),
        config_(std::move(config)),
        cut_(config_, group_->share()),
        ends_(backend, weights, config_.tied_head, {}, {config_.vocabulary, config_.hidden},
              {group_->share(), group_->share()}, storage),
        storage_(storage) {
    final_norm_ = load_tensor(backend, weights, "model.norm.weight", {config_.hidden});
    layers_.reserve(std::size_t(config_.layers));
    for (index_t i = 0; i < config_.layers; ++i)
      layers_.emplace_back(backend, *group_, weights, config_, i, storage);
    const auto frequencies = config_.rope.inverse_frequencies(config_.head_dim);
    frequencies_ = uploaded(backend, frequencies.data(), index_t(frequencies.size()));
  }

  struct Rows {
    std::vector<index_t> position, begin, end;  // (n)
    std::vector<std::int32_t> last;             // rows that end a sample

    void add(index_t at, index_t first_key, index_t keys_end) {
      position.push_back(at), begin.push_back(first_key), end.push_back(keys_end);
    }
    /// Those that end a sample, alone.
    Rows ends() const {
      Rows some;
      for (const std::int32_t row : last)
        some.add(position[std::size_t(row)], begin[std::size_t(row)], end[std::size_t(row)]);
      return some;
    }
  };

  template <class KeysOf>
  TargetOutput<B> run(std::span<const std::int32_t> tokens, const Rows& rows, index_t layers,
                      const TargetRequest& request, KeysOf&& keys_of) const {
    check_layers(request.layers);
    const index_t n = index_t(tokens.size());
    Activations x = embed(tokens);
    const Placed all = placed(rows);
    TargetOutput<B> output;
    Capture capture(*this, n, request.layers, output.features);
    // Of the last layer a prompt needs its keys and values, and the output of its last row.
    const bool some_alone = request.logits == Logits::last && !request.last_hidden &&
                            !capture.wants(layers - 1) && index_t(rows.last.size()) < n;
    for (index_t layer = 0; layer < layers - (some_alone ? 1 : 0); ++layer) {
      layers_[std::size_t(layer)].forward(x.view(), all.view(), keys_of(layer));
      capture.take(layer, x.view());
    }
    if (request.last_hidden) output.last_hidden = final_norm(x.view());
    if (request.logits == Logits::all) output.logits = head_logits(final_norm(x.view()).view());
    if (request.logits == Logits::last) {
      const auto ids = uploaded(*backend_, rows.last.data(), index_t(rows.last.size()));
      Activations last(*backend_, {ids.size(), config_.hidden});
      if (some_alone)
        last = layers_.back().forward_some(x.view(), ids.view(), all.view(),
                                           placed(rows.ends()).view(), keys_of(layers - 1));
      else
        gather_rows(*backend_, x.view(), ids.view(), last.view());
      output.logits = head_logits(final_norm(last.view()).view());
    }
    return output;
  }

  /// What layers need to know of rows, in the backend's memory.
  struct Placed {
    Activations cos, sin;
    Tensor<B, index_t, 1> begin, end;

    DecoderRows<T> view() const { return {cos.view(), sin.view(), begin.view(), end.view()}; }
  };
  Placed placed(const Rows& rows) const {
    const index_t n = index_t(rows.position.size()), half = config_.head_dim / 2;
    Placed there{Activations(*backend_, {n, half}), Activations(*backend_, {n, half}),
                 uploaded(*backend_, rows.begin.data(), n),
                 uploaded(*backend_, rows.end.data(), n)};
    const auto position = uploaded(*backend_, rows.position.data(), n);
    rope_table(*backend_, position.view(), frequencies_.view(), config_.rope.attention_factor,
               there.cos.view(), there.sin.view());
    return there;
  }

  /// Copies the outputs of the layers asked for side by side. Seen as rows of H values, row n of
  /// the c-th layer is row n * C + c of the features.
  class Capture {
   public:
    Capture(const TargetModel& model, index_t rows, const std::vector<index_t>& layers,
            Activations& features)
        : model_(model), layers_(layers) {
      if (layers.empty()) return;
      const index_t count = index_t(layers.size()), hidden = model.config_.hidden;
      expects(rows <= std::numeric_limits<std::int32_t>::max() / count,
              "TargetModel: too many rows at once");
      features = Activations(*model.backend_, {rows, count * hidden});
      features_ = reshape<2>(features.view(), {rows * count, hidden});
      std::vector<std::int32_t> place(static_cast<std::size_t>(rows));
      for (std::size_t n = 0; n < place.size(); ++n) place[n] = std::int32_t(index_t(n) * count);
      place_ = uploaded(*model.backend_, place.data(), rows);
    }

    bool wants(index_t layer) const {
      return std::find(layers_.begin(), layers_.end(), layer) != layers_.end();
    }
    void take(index_t layer, In<T, 2> x) const {
      for (std::size_t c = 0; c < layers_.size(); ++c)
        if (layers_[c] == layer)
          scatter_rows(*model_.backend_, x, place_.view(),
                       features_.rows({index_t(c), features_.shape[0]}));
    }

   private:
    const TargetModel& model_;
    const std::vector<index_t>& layers_;
    View<T, 2> features_;
    Tensor<B, std::int32_t, 1> place_;
  };

  Activations final_norm(In<T, 2> x) const {
    using A = typename B::accumulator_type;
    Activations y(*backend_, {x.shape[0], x.shape[1]});
    Tensor<B, A, 1> rstd(*backend_, {x.shape[0]});
    rms_norm(*backend_, x, final_norm_.view(), A(config_.eps), y.view(), rstd.view());
    return y;
  }

  index_t layers_needed(const TargetRequest& request) const {
    if (request.last_hidden || request.logits != Logits::none) return config_.layers;
    index_t needed = 0;
    for (const index_t layer : request.layers) needed = std::max(needed, layer + 1);
    return needed;
  }

  void check_layers(const std::vector<index_t>& layers) const {
    for (const index_t layer : layers)
      if (layer < 0 || layer >= config_.layers)
        throw Error("layer id " + std::to_string(layer) +
                    " is out of range: the target has layers 0 to " +
                    std::to_string(config_.layers - 1));
  }

  static void check_offsets(std::span<const std::int32_t> tokens,
                            std::span<const index_t> offsets) {
    bool ok =
        offsets.size() >= 2 && offsets.front() == 0 && offsets.back() == index_t(tokens.size());
    for (std::size_t i = 0; ok && i + 1 < offsets.size(); ++i) ok = offsets[i] < offsets[i + 1];
    expects(ok, "TargetModel: offsets must rise from 0 to the number of tokens");
  }

  struct Head {
    std::once_flag made;
    std::optional<typename B::FrozenMatrix> matrix;
  };

  B* backend_;
  std::unique_ptr<Group> own_group_;  // of one rank, where none was given
  Group* group_;
  TargetConfig config_;
  TargetCut cut_;
  FrozenTarget<B> ends_;
  WeightStorage storage_;
  std::vector<DecoderLayer<B, C>> layers_;
  Tensor<B, T, 1> final_norm_;
  Tensor<B, double, 1> frequencies_;  // (D / 2)
  std::unique_ptr<Head> head_ = std::make_unique<Head>();
};

}  // namespace dflash
