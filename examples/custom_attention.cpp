// A user's own attention inside the library's block: this one counts what it computes and hands the
// arithmetic to LocalAttention. Anything that models the Attention concept fits in its place: other
// kernels, other exchanges, or another rule of who sees whom.

#include <cstdio>
#include <dflash/dflash.hpp>

#include "guarded.hpp"

using namespace dflash;

namespace {

/// Counts the scores that attention needs: pairs of a query row and a key it sees, per head.
template <Backend B>
class CountingAttention {
 public:
  using backend_type = B;
  using T = typename B::value_type;
  using Context = typename LocalAttention<B>::Context;
  using Saved = typename LocalAttention<B>::Saved;

  CountingAttention(B& backend, index_t& scores) : local_(backend), scores_(&scores) {}
  B& backend() const { return local_.backend(); }

  AttentionPlaces<T> open_context(index_t rows, HeadSizes sizes, const AttentionRule& rule,
                                  Context& context) const {
    return local_.open_context(rows, sizes, rule, context);
  }
  void begin_context(const AttentionRule& rule, Context& context) const {
    local_.begin_context(rule, context);
  }
  AttentionPlaces<T> open(index_t rows, HeadSizes sizes, const AttentionRule& rule,
                          Saved& saved) const {
    return local_.open(rows, sizes, rule, saved);
  }
  void forward(const AttentionRule& rule, Out<T, 3> y, Context& context, Saved& saved) const {
    for (index_t n = 0; n < rule.mask.blocks(); ++n)
      for (index_t o = 0; o < rule.mask.block_size; ++o)
        *scores_ += y.shape[1] * (rule.mask.context(n, o).size() + rule.mask.own(n, o).size());
    local_.forward(rule, y, context, saved);
  }
  void backward(In<T, 3> dy, const AttentionRule& rule, Context& context, Saved& saved,
                Out<T, 3> dq, Out<T, 3> dk, Out<T, 3> dv) const {
    local_.backward(dy, rule, context, saved, dq, dk, dv);
  }
  void end_context(const AttentionRule& rule, Context& context, Out<T, 3> dk, Out<T, 3> dv) const {
    local_.end_context(rule, context, dk, dv);
  }

 private:
  LocalAttention<B> local_;
  index_t* scores_;
};

static_assert(Attention<CountingAttention<CpuBackend<float>>>);

index_t scores_of_a_forward(index_t window) {
  nlohmann::json json{{"hidden_size", 16},       {"intermediate_size", 16},
                      {"num_hidden_layers", 2},  {"num_attention_heads", 2},
                      {"vocab_size", 8},         {"block_size", 4},
                      {"num_target_layers", 3},  {"dflash_config", {{"target_layer_ids", {1}}}},
                      {"sliding_window", window}};
  if (window > 0) json["layer_types"] = {"sliding_attention", "sliding_attention"};
  const auto config = DraftConfig::from_json(json, "custom_attention");
  const MemorySample memory{
      {"one", std::vector<std::int32_t>(512, 1), std::vector<std::uint8_t>(512, 1)},
      std::make_shared<MemoryFeatures>(std::vector<float>(512 * 16, 1.0f), 16)};
  const std::vector<Sample> samples{memory};
  const std::vector<Blocks> blocks{sample_blocks(samples[0], {.count = 64, .size = 4}, 1, 0)};

  CpuBackend<float> backend;
  index_t scores = 0;
  CountingAttention attention(backend, scores);
  DFlashBlock block(attention, config.shape);
  DraftModel model(block, config);
  const auto weights = random_parameters(backend, config, 1);
  const SequenceParallelGroup group(SingleProcess{});
  const auto batch = shard(backend, group, samples, blocks, /*mask_token=*/0);
  const std::vector<float> embedding(8 * 16, 0.5f);
  typename decltype(model)::Saved saved;
  model.forward(weights, {embedding.data(), {8, 16}}, batch, saved);
  return scores;
}

}  // namespace

int main(int argc, char** argv) {
  return examples::guarded("custom_attention", [&] {
    CLI::App app("Counts the attention scores of a draft in a user's own attention.",
                 "custom_attention");
    app.failure_message(examples::flag_failure);
    CLI11_PARSE(app, argc, argv);

    std::printf("64 blocks of 4 on a context of 512, two layers of two heads:\n");
    std::printf("  full attention      %8td scores\n", scores_of_a_forward(0));
    std::printf("  a window of 32      %8td scores\n", scores_of_a_forward(32));
    return 0;
  });
}
