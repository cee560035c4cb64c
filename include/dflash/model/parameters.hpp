#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "dflash/core/random.hpp"
#include "dflash/core/thread_pool.hpp"
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

/// The slots of all weights of a draft, in the flat order.
inline std::vector<ParameterSlot> parameter_slots(const DraftConfig& config) {
  DraftWeights<float> names;
  names.layers.resize(std::size_t(config.layers));
  std::vector<ParameterSlot> slots;
  index_t total = 0;
  DraftWeights<float>::fields(names, config, [&](std::string name, auto&, auto... extents) {
    slots.push_back({std::move(name), {extents...}, total, (extents * ...)});
    total += slots.back().size;
  });
  return slots;
}

/// Elements of all weights: L (2 H nh D + 2 H nkv D + 2 D + 3 H I + 2 H) + C H^2 + 2 H, and biases.
inline index_t parameter_count(const DraftConfig& config) {
  const ParameterSlot last = parameter_slots(config).back();
  return last.offset + last.size;
}

/// Ranges of the flat buffer in the order in which backward completes them: each layer, from the
/// last, which the final norm goes with; then what lies before the layers. One rank, which sends
/// nothing, has one bucket.
inline std::vector<Range> gradient_buckets(const DraftConfig& config, index_t ranks) {
  const auto slots = parameter_slots(config);
  std::vector<Range> buckets;
  index_t end = slots.back().offset + slots.back().size;
  for (index_t i = ranks > 1 ? config.layers : 0; i-- > 0;) {
    const std::string layer = "layers." + std::to_string(i) + ".";
    const auto first = std::find_if(slots.begin(), slots.end(), [&](const ParameterSlot& slot) {
      return slot.name.starts_with(layer);
    });
    buckets.push_back({first->offset, end});
    end = first->offset;
  }
  buckets.push_back({0, end});
  return buckets;
}

/// The weights of a draft, or their gradients: one allocation, and named views into it.
template <Backend B, class T = typename B::value_type>
class Parameters {
 public:
  /// Uninitialised memory for every weight of the config.
  Parameters(B& backend, const DraftConfig& config)
      : flat_(backend, {parameter_count(config)}), slots_(parameter_slots(config)) {
    views_.layers.resize(static_cast<std::size_t>(config.layers));
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
  constexpr bool own_threads = requires {
    backend.for_parts(index_t(), index_t(), [](Range) {});
  };
  ThreadPool crew(own_threads ? 1 : std::clamp(int(std::thread::hardware_concurrency()), 1, 8));
  const auto in_parts = [&](index_t n, auto f) {
    if constexpr (own_threads) {
      backend.for_parts(n, /*work of each=*/64, f);  // as much as reading so many
    } else {
      constexpr index_t part = 1 << 16;
      crew.parallel_for((n + part - 1) / part, [&](index_t i, int) {
        f(Range{i * part, std::min(n, (i + 1) * part)});
      });
    }
  };
  for (std::size_t i = 0; i < p.slots().size(); ++i) {
    const ParameterSlot& slot = p.slots()[i];
    const Random random(seed, i);
    const T constant = slot.name.ends_with(".bias") ? T(0) : T(1);
    std::vector<T> values(static_cast<std::size_t>(HostBackend<B> ? 0 : slot.size));
    T* const to = HostBackend<B> ? p.flat().data + slot.offset : values.data();
    if (slot.shape.size() == 2)
      in_parts(slot.size, [&](Range part) {
        for (index_t j = part.begin; j < part.end; ++j)
          to[j] = T(float(config.initializer_range * random.normal(std::uint64_t(j))));
      });
    else
      std::fill_n(to, slot.size, constant);
    if (!HostBackend<B>) backend.upload(to, p.flat().data + slot.offset, slot.size);
  }
  return p;
}

}  // namespace dflash
