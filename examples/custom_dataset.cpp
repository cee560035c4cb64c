// A user's own samples: any type with size() and operator[] that gives a Sample is a dataset. Here
// they are made up: sequences that count upwards, and features that tell the token they belong to,
// so that a draft which learns anything at all learns to count.

#include <cstdio>
#include <dflash/dflash.hpp>

#include "guarded.hpp"

using namespace dflash;

namespace {

constexpr index_t vocabulary = 32, hidden = 16;

/// Models Dataset.
class CountingSamples {
 public:
  explicit CountingSamples(index_t count) {
    for (index_t i = 0; i < count; ++i) {
      MemorySample sample{{"count-" + std::to_string(i), {}, {}}, nullptr};
      std::vector<float> features;
      for (index_t t = 0; t < 24; ++t) {
        sample.text.tokens.push_back(std::int32_t((i + t) % (vocabulary - 1)));
        sample.text.loss_mask.push_back(t >= 4 ? 1 : 0);
        for (index_t h = 0; h < hidden; ++h)
          features.push_back(embedding(sample.text.tokens.back(), h));
      }
      sample.features = std::make_shared<MemoryFeatures>(std::move(features), hidden);
      samples_.push_back(std::move(sample));
    }
  }
  index_t size() const { return index_t(samples_.size()); }
  Sample operator[](index_t i) const { return samples_[std::size_t(i)]; }

  static float embedding(index_t token, index_t h) {
    return float(Random(7, std::uint64_t(token)).normal(std::uint64_t(h)));
  }

 private:
  std::vector<MemorySample> samples_;
};

static_assert(Dataset<CountingSamples>);

}  // namespace

int main(int argc, char** argv) {
  return examples::guarded("custom_dataset", [&] {
    CLI::App app("Trains a draft on a user's own samples, made up here, and prints how it learns.",
                 "custom_dataset");
    app.failure_message(examples::flag_failure);
    CLI11_PARSE(app, argc, argv);

    const CountingSamples dataset(200);
    const auto config = DraftConfig::from_json(
        {{"hidden_size", hidden},
         {"intermediate_size", 32},
         {"num_hidden_layers", 1},
         {"num_attention_heads", 2},
         {"vocab_size", vocabulary},
         {"block_size", 4},
         {"num_target_layers", 3},
         {"dflash_config", {{"target_layer_ids", {1}}, {"mask_token_id", vocabulary - 1}}}},
        "custom_dataset");

    CpuBackend<float> backend;
    std::vector<float> table;
    for (index_t token = 0; token < vocabulary; ++token)
      for (index_t h = 0; h < hidden; ++h) table.push_back(CountingSamples::embedding(token, h));
    const In<float, 2> embedding{table.data(), {vocabulary, hidden}};  // head as well: tied

    SequenceParallelGroup group(SingleProcess{});
    LocalAttention attention(backend);
    DFlashBlock block(attention, config.shape);
    DraftModel model(block, config);
    auto weights = random_parameters(backend, config, /*seed=*/1);
    auto gradients = zero_gradients(backend, config);
    AdamW optimizer(backend, weights.flat(), weights.slots());
    SampleOrder order(dataset.size(), /*seed=*/1);

    for (index_t step = 0; step < 300; ++step) {
      std::vector<Sample> samples;
      std::vector<Blocks> blocks;
      for (index_t position = step * 8; position < (step + 1) * 8; ++position) {
        samples.push_back(dataset[order.sample(position)]);
        blocks.push_back(sample_blocks(samples.back(), {.count = 6, .size = config.block_size},
                                       /*seed=*/1, std::uint64_t(order.epoch(position))));
      }
      const auto batch = shard(backend, group, samples, blocks, *config.mask_token);
      decltype(model)::Saved saved;
      model.forward(weights, embedding, batch, saved);
      Tensor<CpuBackend<float>, float, 2> doutput(backend, {batch.tokens.size(), hidden});
      const LossResult loss =
          draft_loss(backend, embedding, saved.output.view(), batch.labels, batch.weights,
                     config.block_size, batch.samples, LossOptions{}, doutput.view());
      fill(backend, gradients.flat(), 0);
      model.backward(weights, batch, saved, doutput.view(), gradients);
      optimizer.step(weights.flat(), gradients.flat(), /*rate=*/3e-3, loss.denominator);
      if (step % 50 == 49)
        std::printf("step %3td  loss %.3f  accuracy %.3f  acceptance %.2f\n", step + 1, loss.loss(),
                    loss.metrics.accuracy(), loss.metrics.acceptance());
    }
    return 0;
  });
}
