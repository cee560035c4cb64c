#include "dflash/train/training_plan.hpp"

#include <doctest/doctest.h>

#include <array>
#include <mutex>

#include "data/bfloat16_features.hpp"
#include "dflash/comm/thread_communicator.hpp"
#include "dflash/model/ulysses_attention.hpp"
#include "dflash/train/micro_step.hpp"
#include "dflash/train/sharded_adamw.hpp"
#include "model/draft_fixture.hpp"

namespace training_plan_test {

using namespace dflash;
using dflash_test::with_bfloat16_features;

TEST_CASE("The plan's parameter counts are those of published drafts") {
  nlohmann::json config{
      {"hidden_size", 4096},       {"intermediate_size", 12288}, {"num_hidden_layers", 5},
      {"num_attention_heads", 32}, {"num_key_value_heads", 8},   {"head_dim", 128},
      {"vocab_size", 151936},      {"block_size", 16},           {"num_target_layers", 36}};
  TrainingPlan plan{.config = DraftConfig::from_json(config, "8b"), .layout = {}};
  CHECK(plan.parameters() == 1048626432);
  config["hidden_size"] = 896, config["intermediate_size"] = 4864;
  config["num_attention_heads"] = 14, config["num_key_value_heads"] = 2, config["head_dim"] = 64;
  config["num_target_layers"] = 24;
  plan.config = DraftConfig::from_json(config, "0.5b");
  CHECK(plan.parameters() == 78572672);
}

using B = CpuBackend<float>;

/// What a rank counts in one optimizer step of `plan.micro_steps` micro-steps, and measures.
struct Counted {
  Traffic sequence, world, target;
  std::vector<index_t> kinds;  // bytes in use after weights, gradients, optimizer, batch, forward
  index_t peak = 0;            // bytes in use at a time, at most
};

template <class Look>
void step_on_ranks(const TrainingPlan& plan, const std::vector<MemorySample>& memory,
                   const std::vector<Blocks>& blocks, Look&& look) {
  const DraftConfig& config = plan.config;
  const std::vector<Sample> samples(memory.begin(), memory.end());
  std::mutex mutex;
  ThreadCommunicator::run(int(plan.ranks()), [&](ThreadCommunicator communicator) {
    B cpu(1, plan.bfloat16_products ? CpuPrecision::bf16 : CpuPrecision::fp32);
    Counted counted;
    index_t before = 0;
    const auto take = [&] {
      counted.kinds.push_back(cpu.memory().bytes().used - before);
      before = cpu.memory().bytes().used;
    };
    SequenceParallelGroup group(std::move(communicator), plan.layout);
    TensorParallelGroup target_group(group.world(), plan.tensor_parallel);
    UlyssesAttention attention(cpu, group);
    DFlashBlock block(attention, config.shape);
    DraftModel model(block, config);
    const Range words = target_group.share().of(config.vocabulary);
    Tensor<B, float, 2> table(cpu, {words.size(), config.shape.hidden});
    fill(cpu, table.view(), 0.1f);
    const VocabularySlice<float> ends{table.view(), words.begin, config.vocabulary};
    before = cpu.memory().bytes().used;
    auto weights = random_parameters(cpu, config, 3);
    take();
    auto gradients = zero_gradients(cpu, config);
    take();
    ShardedAdamW optimizer(cpu, group.world(), weights.flat(), weights.slots(), {},
                           gradient_buckets(config, plan.ranks()));
    take();
    {
      const auto batch = shard(cpu, group, samples, blocks, *config.mask_token);
      take();
      typename decltype(model)::Saved saved;
      Tensor<B, float, 2> x(cpu, {batch.tokens.size(), config.shape.hidden});
      fill(cpu, x.view(), 0.1f);
      model.forward_embedded(weights, std::move(x), batch, saved);
      take();
      Tensor<B, float, 2> doutput(cpu, {batch.tokens.size(), config.shape.hidden});
      fill(cpu, doutput.view(), 0.0f);
      model.backward(weights, batch, saved, doutput.view(), gradients);
    }
    const Traffic first = group.sequence().traffic();
    cpu.memory().forget_peak();
    LossResult own(config.block_size);
    for (index_t micro = 0; micro < plan.micro_steps; ++micro) {
      const auto batch = shard(cpu, group, samples, blocks, *config.mask_token);
      const auto is_final = [&](index_t bucket) {
        if (micro + 1 == plan.micro_steps) optimizer.start(gradients.flat(), bucket);
      };
      own += micro_step(model, group, target_group, ends, ends, batch, {}, weights, gradients,
                        is_final);
    }
    const LossResult loss = sum_over_ranks(cpu, group.world(), own);
    optimizer.step(weights.flat(), gradients.flat(), 1e-3, loss.denominator);
    counted.sequence = group.sequence().traffic() - first;
    counted.world = group.world().traffic();
    counted.target = target_group.communicator().traffic();
    counted.peak = cpu.memory().bytes().peak;
    const std::lock_guard lock(mutex);
    look(group.world().rank(), counted);
  });
}

TEST_CASE("Sums that are exchanged among narrower numbers count with their own size") {
  TrainingPlan plan{.config = small_config(),
                    .layout = {2, 1},
                    .samples = 1,
                    .sample_tokens = 40,
                    .sample_blocks = 6};
  const UlyssesPlan cut = plan.attention();
  const auto sent = [&](index_t number, index_t sum) {
    plan.bytes = {number, sum};
    return plan.sequence_traffic(0).all_to_all.bytes;
  };
  // <y, dy> of the rows here and the heads there.
  const index_t sums = plan.config.layers * cut.block_rows(0) * cut.query_heads(1).size();
  CHECK(sums > 0);
  CHECK(sent(2, 4) == sent(4, 4) / 2 + 2 * sums);
}

TEST_CASE("Counted bytes and collectives of a step are the plan's, exactly, on every layout") {
  const auto config = small_config();
  // Every sample is supervised to its end and every anchor another token, so that rows, blocks and
  // what is looked up are known.
  std::vector<MemorySample> memory = random_samples(config, {90, 90}, 4);
  std::vector<Blocks> blocks;
  std::int32_t token = 0;
  for (auto& sample : memory) {
    auto& text = sample.text;
    text.loss_mask.assign(text.loss_mask.size(), 1);
    const std::vector<index_t> anchors{3, 17, 30, 41, 87};
    for (const index_t anchor : anchors) text.tokens[std::size_t(anchor)] = token++;
    blocks.push_back(blocks_at(text.tokens, text.loss_mask, anchors, 3));
  }
  for (const auto& [replicas, u, r, t] : std::vector<std::array<index_t, 4>>{{1, 2, 1, 1},
                                                                             {1, 3, 1, 3},
                                                                             {1, 1, 3, 1},
                                                                             {1, 2, 2, 2},
                                                                             {2, 2, 1, 4},
                                                                             {2, 1, 2, 1},
                                                                             {1, 6, 1, 6},
                                                                             {4, 1, 1, 2}}) {
    CAPTURE(replicas);
    CAPTURE(u);
    CAPTURE(r);
    CAPTURE(t);
    const TrainingPlan plan{.config = config,
                            .layout = {u, r},
                            .replicas = replicas,
                            .micro_steps = 2,
                            .samples = 2,
                            .sample_tokens = 87,
                            .sample_blocks = 5,
                            .tensor_parallel = t};
    step_on_ranks(plan, memory, blocks, [&](index_t rank, const Counted& counted) {
      CHECK(counted.sequence == plan.sequence_traffic(rank));
      CHECK(counted.world == plan.world_traffic(rank));
      CHECK(counted.target == plan.target_traffic(rank));
      // Three exchanges a layer and direction, the context's among them.
      if (u * r > 1) CHECK(counted.sequence.total().calls == 2 * 6 * config.layers);
    });
  }
}

TEST_CASE("The plan's memory is what a rank uses, by kind") {
  const auto config = DraftConfig::from_json(
      {{"hidden_size", 64},
       {"intermediate_size", 128},
       {"num_hidden_layers", 2},
       {"num_attention_heads", 8},
       {"num_key_value_heads", 4},
       {"head_dim", 16},
       {"vocab_size", 256},
       {"block_size", 8},
       {"num_target_layers", 8},
       {"dflash_config", {{"target_layer_ids", {1, 3, 5}}, {"mask_token_id", 255}}}},
      "config.json");
  const std::vector<MemorySample> wide = random_samples(config, {1501, 1501}, 4);
  std::vector<index_t> anchors;
  for (index_t n = 1; n <= 30; ++n) anchors.push_back(50 * n);
  std::vector<Blocks> blocks;
  for (const auto& sample : wide)
    blocks.push_back(blocks_at(sample.text.tokens, sample.text.loss_mask, anchors, 8));
  std::vector<MemorySample> narrow;
  for (const auto& sample : wide) narrow.push_back(with_bfloat16_features(sample));
  const auto check = [&](const SequenceLayout& layout, bool in_bfloat16) {
    CAPTURE(layout.ulysses);
    CAPTURE(layout.ring);
    CAPTURE(in_bfloat16);
    const TrainingPlan plan{.config = config,
                            .layout = layout,
                            .samples = 2,
                            .sample_tokens = 1500,
                            .sample_blocks = 30,
                            .tied_head = true,
                            .bfloat16_features = in_bfloat16,
                            .bfloat16_products = in_bfloat16};
    step_on_ranks(plan, in_bfloat16 ? narrow : wide, blocks,
                  [&](index_t rank, const Counted& counted) {
                    const auto kinds = plan.memory(rank);
                    for (std::size_t i = 0; i < counted.kinds.size(); ++i) {
                      CAPTURE(kinds[i].name);
                      // Blocks of memory come in sizes a quarter apart.
                      CHECK(double(counted.kinds[i]) >= 0.98 * double(kinds[i].bytes));
                      CHECK(double(counted.kinds[i]) <= 1.25 * double(kinds[i].bytes) + 4096);
                    }
                    const double ratio = double(counted.peak) / double(plan.memory_bytes(rank));
                    CHECK(ratio >= 0.8);
                    CHECK(ratio <= 1.25);
                  });
  };
  for (const SequenceLayout& layout :
       {SequenceLayout{1, 1}, {2, 1}, {4, 1}, {1, 4}, {2, 2}, {8, 1}})
    check(layout, false);
  for (const SequenceLayout& layout : {SequenceLayout{1, 1}, {2, 1}}) check(layout, true);
}

}  // namespace training_plan_test
