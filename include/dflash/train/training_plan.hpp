#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "dflash/comm/collective_bytes.hpp"
#include "dflash/comm/traffic.hpp"
#include "dflash/core/bfloat16.hpp"
#include "dflash/data/feature_exchange.hpp"
#include "dflash/io/disk_space.hpp"
#include "dflash/model/draft_config.hpp"
#include "dflash/model/parameters.hpp"
#include "dflash/model/target_traffic.hpp"
#include "dflash/model/ulysses_plan.hpp"
#include "dflash/train/vocabulary_parallel_loss.hpp"

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
  index_t batches = 1;          // in memory: the one in use, and what is made ahead
  NumberBytes bytes = {};       // of weights and activations; of gradients and sums
  index_t stored_bytes = 2;     // of a stored feature; 0: nothing is read
  index_t chunk_rows = 1024;    // supervised rows that the head takes at once
  index_t tensor_parallel = 1;  // ranks that hold the target together
  bool tied_head = false;       // the target's head is its embedding
  bool float8_head = false;     // the loss has two copies of the head in float8
  bool bfloat16_target = false;             // its matrices stay in bfloat16 whatever `bytes` says
  bool bfloat16_features = false;           // and so do features that are read
  bool bfloat16_products = false;           // and rows that only linear layers read
  std::optional<TargetConfig> target = {};  // where the target itself runs in the job

  struct Item {
    std::string name;
    index_t bytes = 0;
  };

  index_t ranks() const { return replicas * layout.ranks(); }
  index_t context_total() const { return samples * sample_tokens; }
  index_t blocks_total() const { return samples * sample_blocks; }
  UlyssesPlan attention() const {
    UlyssesPlan plan{layout,
                     config.shape.heads,
                     config.shape.kv_heads,
                     config.shape.head_dim,
                     config.block_size,
                     context_total(),
                     blocks_total()};
    plan.accumulator_size = std::max<index_t>(bytes.sum / bytes.value, 1);
    return plan;
  }

  index_t parameters() const { return parameter_count(config); }

  /// Memory of a rank, by kind.
  std::vector<Item> memory(index_t rank = 0) const {
    const index_t n = parameters();
    index_t slice = 0;  // of each bucket
    for (const Range& bucket : gradient_buckets(config, ranks()))
      slice += even_cut(bucket.size(), ranks(), rank).size();
    const index_t vocabulary = share(rank).of(config.vocabulary).size();
    std::vector<Item> items{{"weights", n * bytes.value},
                            {"gradients", n * bytes.sum},
                            {"optimizer", (2 + masters()) * slice * bytes.sum},
                            {"features", batches * batch_bytes(rank)},
                            {"saved activations", saved_bytes(rank)},
                            {"working memory", std::max({backward_bytes(rank), loss_bytes(rank),
                                                         capture_bytes(rank)})}};
    const index_t each = bfloat16_target ? index_t(sizeof(bfloat16)) : bytes.value;
    if (target)
      items.push_back({"target", TargetCut(*target, share(rank)).weights(*target) * each});
    else
      items.push_back(
          {"embedding and head", (tied_head ? 1 : 2) * vocabulary * config.shape.hidden * each});
    if (float8_head) items.push_back({"head in fp8", 2 * vocabulary * config.shape.hidden});
    return items;
  }
  index_t memory_bytes(index_t rank = 0) const {
    index_t sum = 0;
    for (const Item& item : memory(rank)) sum += item.bytes;
    return sum;
  }
  /// And while a checkpoint is saved, between steps: of several ranks each then holds the whole
  /// optimizer.
  index_t saving_bytes(index_t rank = 0) const {
    index_t sum = 0;
    for (const Item& item : memory(rank))
      if (item.name != "saved activations" && item.name != "working memory") sum += item.bytes;
    return sum + (ranks() > 1 ? (2 + masters()) * parameters() * bytes.sum : 0);
  }

  /// What a rank sends in an optimizer step: through its sequence group, through the world, and
  /// through its target group, there at most: every slot is supervised, every anchor another token.
  Traffic sequence_traffic(index_t rank) const {
    Traffic t;
    if (layout.ranks() == 1) return t;
    const index_t times = config.layers * micro_steps;
    t.all_to_all = {UlyssesPlan::collectives * times,
                    attention().sent_by(rank % layout.ranks()) * times * bytes.value};
    return t;
  }
  Traffic world_traffic(index_t rank) const {
    const Share all{ranks(), rank};
    Traffic t;
    for (const Range& bucket : gradient_buckets(config, ranks())) {
      const index_t own = all.of(bucket.size()).size();
      t.reduce_scatter_sum.add(reduce_scatter_bytes(bucket.size(), own, bytes.sum));
      t.all_gather.add(all_gather_bytes(all, own, bytes.value));
    }
    // The loss, its counts and the squared norm, in double.
    t.all_reduce_sum.add(all_reduce_bytes(all, 5 + 2 * config.block_size, 8));
    t.all_reduce_sum.add(all_reduce_bytes(all, 1, 8));
    if (!target) return t;
    const FeatureDeal deal = feature_deal();
    index_t rows = 0;
    for (index_t to = 0; to < ranks(); ++to) rows += to != rank ? deal.rows(rank, to) : 0;
    for (index_t micro = 0; micro < micro_steps; ++micro)
      t.all_to_all.add(rows * config.feature_width() * bytes.value);
    return t;
  }
  Traffic target_traffic(index_t rank) const {
    Traffic step;
    if (tensor_parallel == 1) return step;
    const Range group = target_group(rank);
    std::vector<index_t> distinct;
    std::vector<std::vector<index_t>> chunks;
    for (index_t other = group.begin; other < group.end; ++other) {
      const index_t blocks = own_blocks(other);
      distinct.push_back(blocks > 0 ? std::min(blocks + 1, config.vocabulary) : 0);  // and the mask
      chunks.push_back(chunks_of(blocks));
    }
    for (index_t micro = 0; micro < micro_steps; ++micro) {
      if (target && captured_rows(rank) > 0)
        step += dflash::target_traffic(*target, share(rank), captured_rows(rank), captured_layers(),
                                       0, bytes);
      step += own_vocabulary_rows_traffic(share(rank), config.shape.hidden, distinct, bytes);
      step += vocabulary_parallel_loss_traffic(share(rank), config.shape.hidden, chunks, bytes);
    }
    return step;
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
    for (const Item& item : memory())
      out += "  " + item.name + ": " + bytes_text(item.bytes) + "\n";
    out += "  together: " + bytes_text(memory_bytes()) +
           "\n  while a checkpoint is saved: " + bytes_text(saving_bytes()) +
           "\nsent by rank 0 in a step:\n";
    const Traffic sequence = sequence_traffic(0), world = world_traffic(0);
    const auto line = [&](const char* name, Traffic::Count count) {
      out += std::string("  ") + name + ": " + bytes_text(count.bytes) + " in " +
             std::to_string(count.calls) + "\n";
    };
    line("all-to-all", sequence.all_to_all);
    if (target) line("captured features", world.all_to_all);
    line("reduce-scatter of gradients", world.reduce_scatter_sum);
    line("all-gather of weights", world.all_gather);
    line("all-reduce of scalars", world.all_reduce_sum);
    if (tensor_parallel > 1) line("in the target group, at most", target_traffic(0).total());
    return out + "read from disk by rank 0 in a step: " + bytes_text(disk_bytes(0)) + "\n";
  }

 private:
  /// Of a weight, where weights are narrower than their sums.
  index_t masters() const { return bytes.value < bytes.sum ? 1 : 0; }
  FeatureDeal feature_deal() const {
    const std::vector<index_t> each(std::size_t(samples), sample_tokens);
    return {layout, tensor_parallel,
            std::vector<std::vector<index_t>>(std::size_t(replicas), each)};
  }
  /// Rows that a rank's target group runs the target on in a micro-step.
  index_t captured_rows(index_t rank) const {
    return feature_deal().captured_by(rank / tensor_parallel).size() * sample_tokens;
  }
  Share share(index_t rank) const { return {tensor_parallel, rank % tensor_parallel}; }
  Range target_group(index_t rank) const {
    const index_t first = rank / tensor_parallel * tensor_parallel;
    return {first, first + tensor_parallel};
  }
  index_t own_blocks(index_t rank) const {
    return layout.blocks(rank % layout.ranks(), blocks_total()).size();
  }
  index_t captured_layers() const {
    const auto& ids = config.target_layer_ids;
    return ids.empty() ? 0 : *std::max_element(ids.begin(), ids.end()) + 1;
  }
  /// Supervised rows of each chunk of a loss, if every slot of every block is supervised.
  std::vector<index_t> chunks_of(index_t blocks) const {
    const index_t slots = config.block_size - 1;
    const index_t each = std::max<index_t>(1, chunk_rows / tensor_parallel / slots);
    std::vector<index_t> rows;
    for (; blocks > 0; blocks -= each) rows.push_back(std::min(blocks, each) * slots);
    return rows;
  }

  /// Sizes of this rank's part of an attention; a worker's are 0 where it is alone.
  struct Part {
    index_t rows, context, q, kv, all_rows, ring_rows, stripe, query, key, lse;
  };
  Part part(index_t rank) const {
    const UlyssesPlan a = attention();
    const index_t own = rank % layout.ranks();
    const DFlashShape& s = config.shape;
    Part p{.rows = a.block_rows(own),
           .context = a.context_rows(own),
           .q = s.heads * s.head_dim,
           .kv = s.kv_heads * s.head_dim,
           .all_rows = 0,
           .ring_rows = 0,
           .stripe = 0,
           .query = 0,
           .key = 0,
           .lse = 0};
    if (layout.ranks() == 1) return p;
    p.all_rows = a.blocks_total * config.block_size;
    p.ring_rows = layout.ring_blocks(own, a.blocks_total).size() * config.block_size;
    p.stripe = layout.stripe(own).local(a.context_total);
    p.query = a.query_width(own), p.key = a.key_width(own);
    p.lse = a.query_heads(own).size();
    return p;
  }

  /// Of a value in rows that only linear layers read.
  index_t product_bytes() const {
    return bfloat16_products ? index_t(sizeof(bfloat16)) : bytes.value;
  }

  /// Features, positions, tokens, and what each block of the group sees.
  index_t batch_bytes(index_t rank) const {
    const Part p = part(rank);
    const index_t each = bfloat16_features ? index_t(sizeof(bfloat16)) : bytes.value;
    return p.context * (config.feature_width() * each + index_t(sizeof(index_t))) +
           p.rows * index_t(sizeof(index_t) + sizeof(std::int32_t)) +
           2 * blocks_total() * index_t(sizeof(index_t));
  }

  /// What DraftModel::Saved holds, layer by layer.
  index_t saved_bytes(index_t rank) const {
    const DFlashShape& s = config.shape;
    const Part p = part(rank);
    const bool alone = layout.ranks() == 1;
    const index_t heads = alone ? p.q + 2 * p.kv : 0, keys = alone ? 2 * p.kv : 0;
    const index_t block = p.rows * (s.hidden + 2 * p.q + p.kv + heads + 2 * s.intermediate),
                  context = p.context * (p.kv + keys),
                  worker = p.all_rows * p.query + 2 * (p.ring_rows + p.stripe) * p.key;
    const index_t lse =
        alone ? p.rows * s.heads : p.all_rows * p.lse + (layout.ring > 1 ? p.rows * s.heads : 0);
    const index_t sums =
        config.layers * (p.rows * (2 + s.heads + s.kv_heads) + p.context * s.kv_heads + lse) +
        p.context + p.rows;
    const index_t values = config.layers * (block + context + worker) +
                           (p.context + (config.layers + 2) * p.rows) * s.hidden +
                           (p.context + p.rows) * s.head_dim;
    return values * bytes.value + p.context * s.hidden * product_bytes() + sums * bytes.sum;
  }

  /// What backward needs besides, in the attention or the MLP of a layer, while the gradients of
  /// the layer above's context are under way.
  index_t backward_bytes(index_t rank) const {
    const DFlashShape& s = config.shape;
    const Part p = part(rank);
    const index_t ranks = layout.ranks();
    const auto exchanged = [&](index_t n) { return n * (ranks - 1) / ranks; };  // not the own part
    const index_t normed = p.rows * s.hidden, rows = (p.rows + p.context) * s.hidden;
    const index_t context =
        ranks == 1 ? 2 * p.context * p.kv
                   : 2 * p.stripe * p.key + exchanged(2 * p.stripe * p.key + 2 * p.context * p.kv);
    // The MLP gives back what was saved of it before the attention's turn.
    const index_t mlp = p.rows * 2 * s.intermediate,
                  heads =
                      p.rows * (p.q + 2 * p.kv) + p.all_rows * p.query + 2 * p.ring_rows * p.key,
                  attention = p.rows * (2 * p.q + 2 * p.kv + 2 * s.hidden - 2 * s.intermediate) +
                              2 * p.all_rows * p.query + 2 * p.ring_rows * p.key +
                              (ranks == 1 ? 0 : exchanged(heads) + context);
    return normed * product_bytes() +
           (rows + context + std::max(mlp, attention + key_sums(p))) * bytes.value;
  }

  /// What attention's backward adds up apart for its threads: the keys' gradients in parts, each of
  /// the keys that some of a sample's blocks see, most often a good half of them.
  index_t key_sums(const Part& p) const {
    const index_t width = layout.ranks() == 1 ? p.kv : p.key,
                  keys =
                      (layout.ranks() == 1 ? p.context : p.stripe) / std::max<index_t>(samples, 1),
                  heads = std::max<index_t>(width / config.shape.head_dim, 1);
    const index_t parts = std::min<index_t>((32 + heads - 1) / heads, 16);
    return std::min<index_t>(2 * width * keys * (parts - 1) * 2 / 3, 1 << 24);
  }

  /// Captured features twice, as they come and as they are sent.
  index_t capture_bytes(index_t rank) const {
    return target ? 2 * captured_rows(rank) * config.feature_width() * bytes.value : 0;
  }

  /// What the loss needs: supervised rows and their gradients, of all ranks that hold the head.
  index_t loss_bytes(index_t rank) const {
    index_t own = 0, all = 0;
    const Range group = target_group(rank);
    for (index_t other = group.begin; other < group.end; ++other) {
      const auto chunks = chunks_of(own_blocks(other));
      const index_t rows = chunks.empty() ? 0 : chunks.front();
      if (other == rank) own = rows;
      all += rows;
    }
    const index_t rows = own + (tensor_parallel > 1 ? all : 0);
    return (2 * rows + own_blocks(rank) * config.block_size) * config.shape.hidden * bytes.value;
  }
};

}  // namespace dflash
