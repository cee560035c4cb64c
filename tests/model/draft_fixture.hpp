#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dflash/cpu.hpp"
#include "dflash/data/memory_sample.hpp"
#include "dflash/model/draft_model.hpp"
#include "dflash/train/draft_loss.hpp"

/// A small draft with everything the config can ask for.
inline dflash::DraftConfig small_config(bool bias = false, bool sliding = false) {
  nlohmann::json config{
      {"hidden_size", 12},        {"intermediate_size", 10},  {"num_hidden_layers", 2},
      {"num_attention_heads", 6}, {"num_key_value_heads", 2}, {"head_dim", 4},
      {"vocab_size", 19},         {"block_size", 3},          {"num_target_layers", 8},
      {"attention_bias", bias},   {"initializer_range", 0.3}};
  config["dflash_config"] = {{"target_layer_ids", {1, 3, 5}}, {"mask_token_id", 18}};
  if (sliding) {
    config["layer_types"] = {"sliding_attention", "full_attention"};
    config["sliding_window"] = 4;
  }
  return dflash::DraftConfig::from_json(config, "config.json");
}

/// Samples with random tokens, masks and features, each a pure function of `seed` and its index.
inline std::vector<dflash::MemorySample> random_samples(const dflash::DraftConfig& config,
                                                        std::vector<dflash::index_t> lengths,
                                                        std::uint64_t seed) {
  std::vector<dflash::MemorySample> samples;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const dflash::Random random(seed, i);
    const auto n = static_cast<std::size_t>(lengths[i]);
    dflash::MemorySample sample{{"sample-" + std::to_string(i), {}, {}}, nullptr};
    for (std::size_t t = 0; t < n; ++t) {
      const auto bits = random.bits(t);
      sample.text.tokens.push_back(std::int32_t(bits[0] % std::uint32_t(config.vocabulary)));
      sample.text.loss_mask.push_back(bits[1] % 5 != 0 ? 1 : 0);
    }
    std::vector<float> features(n * std::size_t(config.feature_width()));
    for (std::size_t t = 0; t < features.size(); ++t) features[t] = float(random.normal(1000 + t));
    sample.features =
        std::make_shared<dflash::MemoryFeatures>(std::move(features), config.feature_width());
    samples.push_back(std::move(sample));
  }
  return samples;
}

/// One training problem: a draft, its batch, and frozen embedding and head.
template <class T, class Backend = dflash::CpuBackend<T>>
struct DraftProblem {
  using B = Backend;
  using Model = dflash::DraftModel<dflash::DFlashBlock<dflash::LocalAttention<B>>>;

  DraftProblem(const dflash::DraftConfig& config, std::vector<dflash::MemorySample> memory,
               dflash::index_t blocks_each, dflash::LossOptions loss = {}, int threads = 1,
               dflash::CpuPrecision precision = dflash::CpuPrecision::fp32)
      : cpu(threads, precision),
        model(dflash::DFlashBlock(dflash::LocalAttention(cpu), config.shape), config),
        weights(dflash::random_parameters(cpu, config, 3)),
        options(loss),
        memory_(std::move(memory)) {
    const dflash::Random random(11);
    for (dflash::index_t i = 0; i < config.vocabulary * config.shape.hidden; ++i) {
      embedding_.push_back(T(random.normal(std::uint64_t(2 * i))));
      head_.push_back(T(0.3 * random.normal(std::uint64_t(2 * i + 1))));
    }
    // Norm weights of exactly one would hide a missing factor.
    for (const auto& slot : weights.slots())
      if (slot.shape.size() == 1)
        for (dflash::index_t i = 0; i < slot.size; ++i)
          weights.flat().data[slot.offset + i] =
              T((slot.name.ends_with("bias") ? 0 : 1) +
                0.2 * random.normal(50000 + std::uint64_t(slot.offset + i)));
    for (const auto& sample : memory_) {
      samples_.push_back(sample);
      blocks_.push_back(dflash::sample_blocks(
          samples_.back(), {.count = blocks_each, .size = config.block_size}, 5, 0));
    }
    pack();
  }

  /// Packs samples and blocks anew, after a change.
  void pack() {
    const dflash::SequenceParallelGroup group(dflash::SingleProcess{});
    batch = dflash::shard<B>(cpu, group, samples_, blocks_, *model.config().mask_token);
  }
  dflash::In<T, 2> embedding() const { return table(embedding_); }
  dflash::In<T, 2> head() const { return table(head_); }

  dflash::LossResult forward(typename Model::Saved& saved, dflash::Tensor<B, T, 2>& doutput) {
    model.forward(weights, embedding(), batch, saved);
    doutput = dflash::Tensor<B, T, 2>(cpu, {batch.tokens.size(), model.config().shape.hidden});
    return dflash::draft_loss<B>(cpu, head(), saved.output.view(), batch.labels, batch.weights,
                                 batch.block_size, batch.samples, options, doutput.view());
  }
  double numerator() {
    typename Model::Saved saved;
    dflash::Tensor<B, T, 2> doutput;
    return forward(saved, doutput).numerator;
  }
  /// Adds the gradient of the loss's numerator to `gradients`, or writes it.
  template <class IsFinal = dflash::IgnoreBuckets>
  dflash::LossResult step(dflash::Gradients<B>& gradients, const IsFinal& is_final = {},
                          dflash::Result result = dflash::Result::added) {
    typename Model::Saved saved;
    dflash::Tensor<B, T, 2> doutput;
    const auto loss = forward(saved, doutput);
    model.backward(weights, batch, saved, doutput.view(), gradients, is_final, result);
    return loss;
  }
  std::vector<T> output() {
    typename Model::Saved saved;
    model.forward(weights, embedding(), batch, saved);
    const auto v = saved.output.view();
    return {v.data, v.data + v.size()};
  }

  std::vector<dflash::MemorySample>& memory() { return memory_; }
  std::vector<dflash::Sample>& samples() { return samples_; }
  std::vector<dflash::Blocks>& blocks() { return blocks_; }

  B cpu;
  Model model;
  dflash::Parameters<B> weights;
  dflash::LossOptions options;
  dflash::Batch<B> batch;

 private:
  dflash::In<T, 2> table(const std::vector<T>& values) const {
    return {values.data(), {model.config().vocabulary, model.config().shape.hidden}};
  }
  std::vector<dflash::MemorySample> memory_;
  std::vector<dflash::Sample> samples_;
  std::vector<dflash::Blocks> blocks_;
  std::vector<T> embedding_, head_;
};
