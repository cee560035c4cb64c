#include "dflash/train/training_plan.hpp"

#include <doctest/doctest.h>

#include <mutex>

#include "dflash/comm/thread_communicator.hpp"
#include "dflash/model/ulysses_attention.hpp"
#include "dflash/train/sharded_adamw.hpp"
#include "model/draft_fixture.hpp"

using namespace dflash;

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

TEST_CASE("Counted bytes and collectives of a step are the plan's, exactly, on every layout") {
  using B = CpuBackend<float>;
  const auto config = small_config();
  // Every sample is supervised to its end, so that its context rows and blocks are known.
  std::vector<MemorySample> memory = random_samples(config, {90, 90, 90, 90}, 4);
  std::vector<Blocks> blocks;
  for (auto& sample : memory)
    blocks.push_back(blocks_at(sample.text.tokens, sample.text.loss_mask, {3, 17, 30, 41, 88}, 3));
  for (const auto& [replicas, u, r] :
       std::vector<std::tuple<index_t, index_t, index_t>>{{1, 2, 1},
                                                          {1, 3, 1},
                                                          {1, 1, 3},
                                                          {1, 2, 2},
                                                          {2, 2, 1},
                                                          {2, 1, 2},
                                                          {1, 6, 1},
                                                          {4, 1, 1}}) {
    CAPTURE(replicas);
    CAPTURE(u);
    CAPTURE(r);
    const TrainingPlan plan{.config = config,
                            .layout = {u, r},
                            .replicas = replicas,
                            .micro_steps = 2,
                            .samples = 2,
                            .sample_tokens = 88,
                            .sample_blocks = 5};
    std::mutex mutex;
    ThreadCommunicator::run(int(plan.ranks()), [&](ThreadCommunicator communicator) {
      B cpu;
      SequenceParallelGroup group(std::move(communicator), plan.layout);
      UlyssesAttention attention(cpu, group);
      DFlashBlock block(attention, config.shape);
      DraftModel model(block, config);
      auto weights = random_parameters(cpu, config, 3), gradients = zero_gradients(cpu, config);
      ShardedAdamW optimizer(cpu, group.world(), weights.flat(), weights.slots());
      const std::vector<float> table(std::size_t(config.vocabulary * config.shape.hidden), 0.1f);
      const In<float, 2> head{table.data(), {config.vocabulary, config.shape.hidden}};
      LossResult own(config.block_size);
      for (int micro = 0; micro < 2; ++micro) {
        const std::vector<Sample> samples{memory[0], memory[1]};
        const auto batch =
            shard(cpu, group, samples, std::span(blocks).first(2), *config.mask_token);
        typename decltype(model)::Saved saved;
        model.forward(weights, head, batch, saved);
        Tensor<B, float, 2> doutput(cpu, {batch.tokens.size(), config.shape.hidden});
        own += draft_loss(cpu, head, saved.output.view(), batch.labels, batch.weights,
                          config.block_size, 0, {}, doutput.view());
        model.backward(weights, batch, saved, doutput.view(), gradients);
      }
      const LossResult loss = sum_over_ranks(cpu, group.world(), own);
      optimizer.step(weights.flat(), gradients.flat(), 1e-3, loss.denominator);
      const std::lock_guard lock(mutex);
      CHECK(group.sequence().traffic() == plan.sequence_traffic(group.rank()));
      CHECK(group.world().traffic() == plan.world_traffic(group.world().rank()));
    });
  }
}
