#include <cstdio>
#include <dflash/dflash.hpp>
#include <dflash/text.hpp>

// A program outside the repository: one step of a small draft, from the installed headers alone.
int main() {
  using namespace dflash;
  const auto config = DraftConfig::from_json(
      nlohmann::json::parse(R"({"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 11, "block_size": 2, "num_target_layers": 4,
        "dflash_config": {"target_layer_ids": [1], "mask_token_id": 10}})"),
      "here");
  const MemorySample memory{{"one", {1, 2, 3, 4}, {1, 1, 1, 1}},
                            std::make_shared<MemoryFeatures>(std::vector<float>(32, 0.5f), 8)};
  const std::vector<Sample> samples{memory};
  const std::vector<Blocks> blocks{sample_blocks(samples[0], {.count = 2, .size = 2}, 1, 0)};

  CpuBackend<float> backend;
  LocalAttention attention(backend);
  DFlashBlock block(attention, config.shape);
  DraftModel model(block, config);
  const auto weights = random_parameters(backend, config, 1);
  const auto batch =
      shard(backend, SequenceParallelGroup(SingleProcess{}), samples, blocks, *config.mask_token);
  const std::vector<float> embedding(88, 0.25f);
  decltype(model)::Saved saved;
  model.forward(weights, {embedding.data(), {11, 8}}, batch, saved);
  std::printf("%td rows\n", saved.output.view().shape[0]);
  return saved.output.view().shape[0] == 4 ? 0 : 1;
}
