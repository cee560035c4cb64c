#include "dflash/model/ulysses_attention.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <mutex>

#include "dflash/comm/thread_communicator.hpp"
#include "model/draft_fixture.hpp"

namespace ulysses_attention_test {

using namespace dflash;

/// A draft with the given heads; the first layer slides.
DraftConfig headed_config(index_t heads, index_t kv_heads) {
  nlohmann::json config{{"hidden_size", 10},
                        {"intermediate_size", 6},
                        {"num_hidden_layers", 2},
                        {"num_attention_heads", heads},
                        {"num_key_value_heads", kv_heads},
                        {"head_dim", 2},
                        {"vocab_size", 13},
                        {"block_size", 3},
                        {"num_target_layers", 6},
                        {"attention_bias", true},
                        {"initializer_range", 0.3},
                        {"sliding_window", 5}};
  config["layer_types"] = {"sliding_attention", "full_attention"};
  config["dflash_config"] = {{"target_layer_ids", {1, 2}}, {"mask_token_id", 12}};
  return DraftConfig::from_json(config, "config.json");
}

struct Step {
  LossResult loss;
  std::vector<double> gradients;
};

/// Forward, loss and backward on the ranks of a layout; sums over them.
template <class T>
Step step_on(const DraftConfig& config, const std::vector<MemorySample>& memory,
             index_t blocks_each, SequenceLayout layout, LossOptions options = {}) {
  using B = CpuBackend<T>;
  Step result;
  std::mutex mutex;
  std::vector<std::vector<double>> shares(std::size_t(layout.ranks()));
  const DraftProblem<T> tables(config, memory, blocks_each);
  ThreadCommunicator::run(int(layout.ranks()), [&](ThreadCommunicator world) {
    B cpu;
    SequenceParallelGroup group(std::move(world), layout);
    UlyssesAttention attention(cpu, group);
    DFlashBlock block(attention, config.shape);
    DraftModel model(block, config);
    auto weights = random_parameters(cpu, config, 3);
    cpu.copy(tables.weights.flat().data, weights.flat().data, weights.flat().size());
    auto gradients = zero_gradients(cpu, config);
    std::vector<Sample> samples;
    std::vector<Blocks> blocks;
    for (const auto& sample : memory) {
      samples.push_back(sample);
      blocks.push_back(sample_blocks(samples.back(), {.count = blocks_each, .size = 3}, 5, 0));
    }
    const auto batch = shard(cpu, group, samples, blocks, *config.mask_token);
    typename decltype(model)::Saved saved;
    model.forward(weights, tables.embedding(), batch, saved);
    Tensor<B, T, 2> doutput(cpu, {batch.tokens.size(), config.shape.hidden});
    const index_t own_samples = group.rank() == 0 ? batch.samples : 0;
    const auto loss =
        draft_loss(cpu, tables.head(), saved.output.view(), batch.labels, batch.weights,
                   config.block_size, own_samples, options, doutput.view());
    model.backward(weights, batch, saved, doutput.view(), gradients);
    const std::lock_guard lock(mutex);
    result.loss += loss;
    auto& share = shares[std::size_t(group.rank())];
    for (index_t i = 0; i < gradients.flat().size(); ++i)
      share.push_back(double(gradients.flat().data[i]));
  });
  result.gradients = shares.front();
  for (std::size_t r = 1; r < shares.size(); ++r)
    for (std::size_t i = 0; i < shares[r].size(); ++i) result.gradients[i] += shares[r][i];
  return result;
}

template <class T>
void check_layouts(index_t heads, index_t kv_heads, std::vector<index_t> lengths,
                   index_t blocks_each, index_t most_ranks, double loss_limit,
                   double gradient_limit, LossOptions options = {}) {
  const auto config = headed_config(heads, kv_heads);
  const auto memory = random_samples(config, std::move(lengths), 8);
  const Step one = step_on<T>(config, memory, blocks_each, {}, options);
  const auto slots = DraftProblem<T>(config, memory, blocks_each).weights.slots();
  for (index_t u = 1; u <= std::min(heads, most_ranks); ++u)
    for (index_t r = 1; u * r <= most_ranks; ++r) {
      CAPTURE(heads);
      CAPTURE(kv_heads);
      CAPTURE(u);
      CAPTURE(r);
      const Step many = step_on<T>(config, memory, blocks_each, {u, r}, options);
      CHECK(std::abs(many.loss.numerator - one.loss.numerator) <=
            loss_limit * std::abs(one.loss.numerator));
      CHECK(many.loss.denominator == doctest::Approx(one.loss.denominator).epsilon(1e-14));
      CHECK(many.loss.metrics.correct_slots() == one.loss.metrics.correct_slots());
      CHECK(many.loss.metrics.accepted == one.loss.metrics.accepted);
      for (const auto& slot : slots) {
        CAPTURE(slot.name);
        double top = 0, worst = 0;
        for (auto i = std::size_t(slot.offset); i < std::size_t(slot.offset + slot.size); ++i) {
          top = std::max(top, std::abs(one.gradients[i]));
          worst = std::max(worst, std::abs(one.gradients[i] - many.gradients[i]));
        }
        CHECK(worst <= gradient_limit * top);
      }
    }
}

TEST_CASE("Loss and gradients of every layout of 1 to 8 ranks are those of one, in double") {
  SUBCASE("6 heads on 2") { check_layouts<double>(6, 2, {150, 1, 83}, 5, 8, 1e-12, 1e-12); }
  SUBCASE("6 heads on 3") { check_layouts<double>(6, 3, {31, 9}, 4, 8, 1e-12, 1e-12); }
  SUBCASE("14 heads on 2") { check_layouts<double>(14, 2, {203}, 7, 8, 1e-12, 1e-12); }
  SUBCASE("fewer blocks than ranks") { check_layouts<double>(6, 2, {9, 4}, 1, 8, 1e-12, 1e-12); }
  SUBCASE("D-PACE") {
    check_layouts<double>(6, 2, {70, 33}, 4, 6, 1e-12, 1e-12, {.type = LossType::dpace});
  }
}

TEST_CASE("Loss and gradients of every layout of 1 to 8 ranks are those of one, in float") {
  SUBCASE("6 heads on 2") { check_layouts<float>(6, 2, {150, 1, 83}, 5, 8, 1e-5, 1e-5); }
  SUBCASE("14 heads on 2") { check_layouts<float>(14, 2, {203}, 7, 8, 1e-5, 1e-5); }
}

TEST_CASE("More Ulysses ranks than query heads are refused with both numbers") {
  const auto config = headed_config(2, 1);
  try {
    step_on<double>(config, random_samples(config, {20}, 8), 3, {3, 1});
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find("degree 3") != std::string::npos);
    CHECK(std::string(error.what()).find("heads, 2") != std::string::npos);
  }
}

}  // namespace ulysses_attention_test
