#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dflash/core/random.hpp"
#include "dflash/model/dflash_block.hpp"

namespace dflash {

/// Every weight of a draft, and equally every gradient.
template <class T>
struct DraftWeights {
  View<T, 2> fc;                 // (H, C * H): fuses the captured layers
  View<T, 1> hidden_norm, norm;  // (H): after fc, and after the last layer
  std::vector<DFlashBlockWeights<T>> layers;

  /// Calls visit(name in a checkpoint, member, extents...) for each weight, in the flat order.
  template <class Self, class Visit>
  static void fields(Self& w, const DraftConfig& config, Visit&& visit) {
    const index_t hidden = config.shape.hidden;
    visit(std::string("fc.weight"), w.fc, hidden, config.feature_width());
    visit(std::string("hidden_norm.weight"), w.hidden_norm, hidden);
    for (std::size_t i = 0; i < w.layers.size(); ++i)
      DFlashBlockWeights<T>::fields(
          w.layers[i], config.shape, [&](const char* name, auto& member, auto... extents) {
            visit("layers." + std::to_string(i) + "." + name, member, extents...);
          });
    visit(std::string("norm.weight"), w.norm, hidden);
  }
};

/// Where one weight lies in the flat buffer.
struct ParameterSlot {
  std::string name;            // in a checkpoint
  std::vector<index_t> shape;  // one or two extents
  index_t offset = 0, size = 0;
};

/// The weights of a draft, or their gradients: one allocation, and named views into it.
template <Backend B, class T = typename B::value_type>
class Parameters {
 public:
  /// Uninitialised memory for every weight of the config.
  Parameters(B& backend, const DraftConfig& config) {
    views_.layers.resize(static_cast<std::size_t>(config.layers));
    index_t total = 0;
    DraftWeights<T>::fields(views_, config, [&](std::string name, auto&, auto... extents) {
      ParameterSlot slot{std::move(name), {extents...}, total, (extents * ...)};
      total += slot.size;
      slots_.push_back(std::move(slot));
    });
    flat_ = Tensor<B, T, 1>(backend, {total});
    T* next = flat_.view().data;
    DraftWeights<T>::fields(views_, config, [&](const std::string&, auto& view, auto... extents) {
      view = {next, {extents...}};
      next += (extents * ...);
    });
  }

  DraftWeights<T>& operator*() { return views_; }
  const DraftWeights<T>& operator*() const { return views_; }
  View<T, 1> flat() { return flat_.view(); }
  View<const T, 1> flat() const { return flat_.view(); }
  const std::vector<ParameterSlot>& slots() const { return slots_; }

 private:
  Tensor<B, T, 1> flat_;
  DraftWeights<T> views_;
  std::vector<ParameterSlot> slots_;
};

/// Gradients of all weights, in the type in which the backend sums.
template <Backend B>
using Gradients = Parameters<B, typename B::accumulator_type>;

/// Gradients that are all zero: what backward adds to.
template <Backend B>
Gradients<B> zero_gradients(B& backend, const DraftConfig& config) {
  Gradients<B> g(backend, config);
  fill(backend, g.flat(), 0);
  return g;
}

/// A fresh draft: matrices normal with the config's initializer_range, norms one, biases zero. The
/// same seed gives the same weights on every backend and rank.
template <Backend B>
Parameters<B> random_parameters(B& backend, const DraftConfig& config, std::uint64_t seed) {
  using T = typename B::value_type;
  Parameters<B> p(backend, config);
  for (std::size_t i = 0; i < p.slots().size(); ++i) {
    const ParameterSlot& slot = p.slots()[i];
    const Random random(seed, i);
    const T constant = slot.name.ends_with(".bias") ? T(0) : T(1);
    std::vector<T> values(static_cast<std::size_t>(slot.size), constant);
    if (slot.shape.size() == 2)
      for (std::size_t j = 0; j < values.size(); ++j)
        values[j] = T(float(config.initializer_range * random.normal(j)));
    backend.upload(values.data(), p.flat().data + slot.offset, slot.size);
  }
  return p;
}

}  // namespace dflash
