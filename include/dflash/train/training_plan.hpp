#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "dflash/comm/traffic.hpp"
#include "dflash/io/disk_space.hpp"
#include "dflash/model/draft_config.hpp"
#include "dflash/model/parameters.hpp"
#include "dflash/model/ulysses_plan.hpp"

namespace dflash {

/// What one optimizer step of a job is made of, known before anything is loaded.
struct TrainingPlan {
  DraftConfig config;
  SequenceLayout layout;
  index_t replicas = 1;
  index_t micro_steps = 1;      // of a replica in an optimizer step
  index_t samples = 1;          // of a replica in a micro-step
  index_t sample_tokens = 0;    // of each; its context ends before its last anchor, so at most that
  index_t sample_blocks = 0;    // of each
  index_t value_bytes = 4;      // of weights and activations
  index_t stored_bytes = 2;     // of a stored feature
  index_t vocabulary_rows = 0;  // of the head that a rank holds: V, or a share of it

  struct Item {
    std::string name;
    index_t bytes = 0;
  };

  index_t ranks() const { return replicas * layout.ranks(); }
  index_t context_total() const { return samples * sample_tokens; }
  index_t blocks_total() const { return samples * sample_blocks; }
  UlyssesPlan attention() const {
    return {layout,
            config.shape.heads,
            config.shape.kv_heads,
            config.shape.head_dim,
            config.block_size,
            context_total(),
            blocks_total()};
  }

  /// Elements of all weights: L (2 H nh d + 2 H nkv d + 2 d + 3 H I + 2 H) + C H^2 + 2 H, biases
  /// besides.
  index_t parameters() const {
    DraftWeights<float> names;
    names.layers.resize(std::size_t(config.layers));
    index_t total = 0;
    DraftWeights<float>::fields(names, config, [&](const std::string&, auto&, auto... extents) {
      total += (extents * ...);
    });
    return total;
  }

  /// Memory of a rank, by kind.
  std::vector<Item> memory(index_t rank = 0) const {
    const DFlashShape& s = config.shape;
    const UlyssesPlan a = attention();
    const index_t own = rank % layout.ranks();
    const index_t rows = a.block_rows(own), context = a.context_rows(own);
    const index_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    // What DFlashBlock::Saved and its ContextSaved hold, tensor by tensor.
    const index_t block_saved = rows * (4 * s.hidden + 3 * q + 3 * kv + 3 * s.intermediate);
    const index_t context_saved = context * 3 * kv;
    index_t worker = 0;
    if (layout.ranks() > 1) {
      const index_t all_rows = a.blocks_total * config.block_size;
      const index_t ring_rows =
          a.layout.ring_blocks(own, a.blocks_total).size() * config.block_size;
      worker = all_rows * (a.query_width(own) + a.lse_width(own)) +
               2 * (ring_rows + layout.stripe(own).local(a.context_total)) * a.key_width(own);
    }
    const index_t n = parameters();
    return {{"weights", n * value_bytes},
            {"gradients", n * value_bytes},
            {"optimizer", 2 * even_cut(n, ranks(), rank).size() * value_bytes},
            {"features", context * config.feature_width() * value_bytes},
            {"saved activations", (config.layers * (block_saved + context_saved + worker) +
                                   (2 * context + (config.layers + 2) * rows) * s.hidden) *
                                      value_bytes},
            {"embedding and head", 2 * vocabulary_rows * s.hidden * value_bytes}};
  }

  /// What a rank sends in an optimizer step: through its sequence group, and through the world.
  Traffic sequence_traffic(index_t rank) const {
    Traffic t;
    if (layout.ranks() == 1) return t;
    const index_t times = config.layers * micro_steps;
    t.all_to_all = {UlyssesPlan::collectives * times,
                    attention().sent_by(rank % layout.ranks()) * times * value_bytes};
    return t;
  }
  Traffic world_traffic(index_t rank) const {
    const auto reduce = [&](index_t n, index_t bytes) {
      const index_t own = even_cut(n, ranks(), rank).size();
      return bytes * ((n - own) + own * (ranks() - 1));
    };
    const index_t n = parameters(), own = even_cut(n, ranks(), rank).size();
    Traffic t;
    t.reduce_scatter_sum = {1, value_bytes * (n - own)};
    t.all_gather = {1, value_bytes * own * (ranks() - 1)};
    // The loss, its counts and the squared norm, in double.
    t.all_reduce_sum = {2, reduce(5 + 2 * config.block_size, 8) + reduce(1, 8)};
    return t;
  }

  /// Bytes of stored features that a rank reads in an optimizer step, at most.
  index_t disk_bytes(index_t rank) const {
    return micro_steps * attention().context_rows(rank % layout.ranks()) * config.feature_width() *
           stored_bytes;
  }

  /// The plan for people.
  std::string text() const {
    std::string out = std::to_string(ranks()) + " ranks: " + std::to_string(replicas) +
                      " replicas x " + std::to_string(layout.ring) + " ring x " +
                      std::to_string(layout.ulysses) + " ulysses\n" + std::to_string(parameters()) +
                      " parameters; a micro-step has up to " + std::to_string(context_total()) +
                      " context rows and " + std::to_string(blocks_total()) + " blocks of " +
                      std::to_string(config.block_size) + "\nmemory of rank 0:\n";
    index_t sum = 0;
    for (const Item& item : memory()) {
      out += "  " + item.name + ": " + bytes_text(item.bytes) + "\n";
      sum += item.bytes;
    }
    out += "  together: " + bytes_text(sum) + "\nsent by rank 0 in a step:\n";
    const Traffic sequence = sequence_traffic(0), world = world_traffic(0);
    for (const auto& [name, count] :
         {std::pair{"all-to-all", sequence.all_to_all},
          std::pair{"reduce-scatter of gradients", world.reduce_scatter_sum},
          std::pair{"all-gather of weights", world.all_gather},
          std::pair{"all-reduce of scalars", world.all_reduce_sum}})
      out += std::string("  ") + name + ": " + bytes_text(count.bytes) + " in " +
             std::to_string(count.calls) + "\n";
    return out + "read from disk by rank 0 in a step: " + bytes_text(disk_bytes(0)) + "\n";
  }
};

}  // namespace dflash
