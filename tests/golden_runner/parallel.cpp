// Sequence parallelism: what the ranks of the reference hold, exchange and add up.

#include <mutex>

#include "dflash/comm/thread_communicator.hpp"
#include "dflash/cpu.hpp"
#include "dflash/data/memory_sample.hpp"
#include "dflash/model/draft_model.hpp"
#include "dflash/model/ulysses_attention.hpp"
#include "dflash/train/draft_loss.hpp"
#include "golden.hpp"

using namespace dflash;

namespace golden {
namespace {

/// One kept row of a case as a sample, with the blocks that the reference kept.
struct Whole {
  MemorySample memory;
  std::vector<index_t> anchors;

  Whole(const GoldenCase& c, const std::string& tokens, const std::string& mask,
        const std::string& features) {
    const index_t width = c.shape(features).back();
    memory = {{c.name, c.read<std::int32_t>(tokens), c.read<std::uint8_t>(mask)},
              std::make_shared<MemoryFeatures>(c.read<float>(features), width)};
    const auto all = c.read<index_t>("anchors");
    const auto keep = c.read<std::uint8_t>("keep");
    for (std::size_t i = 0; i < all.size(); ++i)
      if (keep[i] != 0) anchors.push_back(all[i]);
  }
};

/// Rows of `rank`'s shard of a tensor that its attention mask marks, all ranks laid end to end.
template <class T>
std::vector<T> valid_rows(const GoldenCase& c, index_t ranks, const std::string& tensor) {
  std::vector<T> rows;
  for (index_t r = 0; r < ranks; ++r) {
    const std::string prefix = "rank" + std::to_string(r) + ".dataset.";
    const auto valid = c.read<std::uint8_t>(prefix + "attention_mask");
    const auto values = c.read<T>(prefix + tensor);
    const std::size_t each = values.size() / valid.size();
    for (std::size_t i = 0; i < valid.size(); ++i)
      if (valid[i] != 0)
        rows.insert(rows.end(), values.begin() + index_t(i * each),
                    values.begin() + index_t((i + 1) * each));
  }
  return rows;
}

}  // namespace

// The reference pads between shards, which is its defect: valid rows, labels and masks are
// compared.
void run_collator(const GoldenCase& c, Report& report) {
  const index_t ranks = c.settings.at("P"), k = c.settings.at("K");
  Whole whole(c, "full.input_ids", "full.loss_mask", "full.hidden_state");
  const index_t length =
      std::min<index_t>(index_t(whole.memory.text.tokens.size()), c.settings.at("max_len"));
  whole.memory.text.tokens.resize(std::size_t(length));
  whole.memory.text.loss_mask.resize(std::size_t(length));
  const Sample sample = whole.memory;
  const Blocks blocks =
      blocks_at(whole.memory.text.tokens, whole.memory.text.loss_mask, whole.anchors, k);

  CpuBackend<float> cpu;
  std::vector<float> features;
  std::vector<index_t> positions, block_rows;
  std::vector<std::int32_t> labels, tokens;
  std::vector<float> weights;
  for (index_t r = 0; r < ranks; ++r) {
    // Ranks hold ranges: any communicator whose rank and size are these would do.
    const SequenceLayout layout{ranks, 1};
    const auto own = layout.blocks(r, blocks.count());
    const index_t width = whole.memory.features->width();
    for (const Range& range : layout.context_ranges(r, length)) {
      std::vector<float> rows(std::size_t(range.size() * width));
      sample.features->read(range, rows.data());
      features.insert(features.end(), rows.begin(), rows.end());
      for (index_t p = range.begin; p < range.end; ++p) {
        positions.push_back(p);
        tokens.push_back(whole.memory.text.tokens[std::size_t(p)]);
      }
    }
    labels.insert(labels.end(), blocks.labels.begin() + own.begin * k,
                  blocks.labels.begin() + own.end * k);
    weights.insert(weights.end(), blocks.weights.begin() + own.begin * k,
                   blocks.weights.begin() + own.end * k);
  }
  report.equal("rows", features, valid_rows<float>(c, ranks, "hidden_state"));
  report.equal("tokens", tokens, valid_rows<std::int32_t>(c, ranks, "input_ids"));
  report.equal("positions", positions, valid_rows<index_t>(c, ranks, "position_ids"));

  const auto keep = c.read<std::uint8_t>("keep"), presence = c.read<std::uint8_t>("label_presence");
  const auto label = c.read<std::int32_t>("labels");
  const auto mask = c.read<std::uint8_t>("label_mask");
  index_t n = 0;
  bool labels_agree = true, weights_agree = true, presence_agrees = true;
  for (std::size_t i = 0; i < keep.size(); ++i) {
    if (keep[i] == 0) continue;
    for (index_t slot = 0; slot < k; ++slot) {
      const auto theirs = i * std::size_t(k) + std::size_t(slot);
      const auto ours = std::size_t(n * k + slot);
      const bool inside = whole.anchors[std::size_t(n)] + slot < length;
      presence_agrees = presence_agrees && inside == (presence[theirs] != 0);
      if (inside) labels_agree = labels_agree && labels[ours] == label[theirs];
      weights_agree =
          weights_agree && weights[ours] == (slot > 0 && inside && mask[theirs] != 0 ? 1.0f : 0.0f);
    }
    ++n;
  }
  report.expect(labels_agree, "labels");
  report.expect(weights_agree, "weights");
  report.expect(presence_agrees, "presence");
}

void run_sp_scatter(const GoldenCase& c, Report& report) {
  using B = CpuBackend<float>;
  const index_t ranks = c.settings.at("P"), rows = c.shape("full")[1], heads = c.shape("full")[2],
                dim = c.shape("full")[3];
  std::mutex mutex;
  ThreadCommunicator::run(int(ranks), [&](ThreadCommunicator world) {
    B cpu;
    const index_t own = rows / ranks, own_heads = heads / ranks;
    const std::string prefix = "rank" + std::to_string(world.rank()) + ".";
    std::vector<Range> row_ranges, head_ranges;
    for (index_t r = 0; r < ranks; ++r) {
      row_ranges.push_back(even_cut(rows, ranks, r));
      head_ranges.push_back(even_cut(heads, ranks, r));
    }
    auto in = c.read<float>(prefix + "seq_to_heads.in");
    auto back = c.read<float>(prefix + "heads_to_seq.in");
    std::vector<float> to_heads, to_rows;
    for (index_t b = 0; b < c.shape("full")[0]; ++b) {
      const auto exchange = [&](float* outside, float* inside, bool forward) {
        const HeadLane<float> lane{View<float, 3>{outside, {own, heads, dim}},
                                   {inside, {rows, own_heads, dim}},
                                   &row_ranges,
                                   &head_ranges};
        HeadExchange<B, ThreadCommunicator> exchange(cpu, world);
        if (forward) {
          exchange.start_to_heads(lane);
          exchange.finish_to_heads(lane);
          return;
        }
        exchange.start_to_rows(lane);
        exchange.finish_to_rows(
            [&](index_t worker, View<const float, 3> piece) {
              add_columns(cpu, reshape<2>(piece, {own, own_heads * dim}),
                          head_ranges[std::size_t(worker)].begin * dim,
                          View<float, 2>{outside, {own, heads * dim}});
            },
            lane);
      };
      std::vector<float> inside(std::size_t(rows * own_heads * dim));
      std::vector<float> outside(std::size_t(own * heads * dim), 0.0f);
      exchange(in.data() + b * own * heads * dim, inside.data(), true);
      exchange(outside.data(), back.data() + b * rows * own_heads * dim, false);
      to_heads.insert(to_heads.end(), inside.begin(), inside.end());
      to_rows.insert(to_rows.end(), outside.begin(), outside.end());
    }
    const std::lock_guard lock(mutex);
    report.equal(prefix + "seq_to_heads", to_heads, c.read<float>(prefix + "seq_to_heads.out"));
    report.equal(prefix + "heads_to_seq", to_rows, c.read<float>(prefix + "heads_to_seq.out"));
    // The gradient of the first exchange is the second: both get the same head slices here.
    report.equal(prefix + "grad_in", to_rows, c.read<float>(prefix + "grad_in"));
  });
}

void run_usp_step(const GoldenCase& c, Report& report) {
  using B = CpuBackend<double>;
  nlohmann::json flat = c.settings.at("config");
  flat["dflash_config"] = {{"target_layer_ids", flat.at("target_layer_ids")},
                           {"mask_token_id", flat.at("mask_token_id")}};
  const auto config = DraftConfig::from_json(flat, c.name);
  const Whole whole(c, "input_ids", "loss_mask", "hidden_states");
  const std::vector<Sample> samples{whole.memory};
  const std::vector<Blocks> blocks{blocks_at(whole.memory.text.tokens, whole.memory.text.loss_mask,
                                             whole.anchors, config.block_size)};
  const auto embedding = c.read<double>("embed.weight"), head = c.read<double>("lm_head.weight");
  const index_t hidden = config.shape.hidden, vocabulary = index_t(head.size()) / hidden;
  LossOptions options;
  if (c.settings.at("train").at("loss_decay_gamma").is_number())
    options.gamma = c.settings["train"]["loss_decay_gamma"];

  const index_t ranks = c.settings.at("P");
  std::mutex mutex;
  LossResult loss;
  std::vector<double> gradient, output;
  std::vector<ParameterSlot> slots;
  std::vector<std::vector<double>> outputs(static_cast<std::size_t>(ranks));
  ThreadCommunicator::run(int(ranks), [&](ThreadCommunicator world) {
    B cpu;
    SequenceParallelGroup group(std::move(world), {ranks, 1});
    UlyssesAttention attention(cpu, group);
    DFlashBlock block(attention, config.shape);
    DraftModel model(block, config);
    Parameters<B> weights(cpu, config);
    for (const ParameterSlot& slot : weights.slots()) {
      const auto values = c.read<double>(slot.name);
      cpu.upload(values.data(), weights.flat().data + slot.offset, slot.size);
    }
    auto gradients = zero_gradients(cpu, config);
    const auto batch = shard(cpu, group, samples, blocks, *config.mask_token);
    typename decltype(model)::Saved saved;
    model.forward(weights, {embedding.data(), {vocabulary, hidden}}, batch, saved);
    Tensor<B, double, 2> doutput(cpu, {batch.tokens.size(), hidden});
    const auto own = draft_loss(cpu, {head.data(), {vocabulary, hidden}}, saved.output.view(),
                                batch.labels, batch.weights, config.block_size,
                                group.rank() == 0 ? 1 : 0, options, doutput.view());
    model.backward(weights, batch, saved, doutput.view(), gradients);
    group.sequence().all_reduce_sum(cpu, gradients.flat());
    const std::lock_guard lock(mutex);
    loss += own;
    slots = gradients.slots();
    gradient.assign(gradients.flat().data, gradients.flat().data + gradients.flat().size());
    outputs[std::size_t(group.rank())].assign(
        saved.output.view().data, saved.output.view().data + saved.output.view().size());
  });
  for (const auto& part : outputs) output.insert(output.end(), part.begin(), part.end());

  const double denominator = loss.denominator + 1e-6;  // that rule's addition
  const auto& scalars = c.settings.at("scalars");
  report.near("loss of the whole sequence", loss.numerator / denominator,
              scalars.at("full_sequence_loss"), 1e-12);
  // Where padding came between shards, the reference's own output and gradients are wrong.
  if (std::abs(scalars.at("loss").get<double>() / scalars.at("full_sequence_loss").get<double>() -
               1) > 1e-9)
    return;
  const auto all = c.read<double>("out.hidden");
  const auto keep = c.read<std::uint8_t>("keep");
  std::vector<double> kept;
  const auto each = index_t(all.size() / keep.size());
  for (index_t n = 0; n < index_t(keep.size()); ++n)
    if (keep[std::size_t(n)] != 0)
      kept.insert(kept.end(), all.begin() + n * each, all.begin() + (n + 1) * each);
  report.near("out.hidden", output, kept, 1e-12);
  for (const ParameterSlot& slot : slots) {
    std::vector<double> own(gradient.begin() + slot.offset,
                            gradient.begin() + slot.offset + slot.size);
    for (double& g : own) g /= denominator;
    report.near("grad." + slot.name, own, c.read<double>("grad." + slot.name), 1e-9);
  }
}

}  // namespace golden
