#pragma once

// The draft model on any backend: its forward pass, and the loss, metrics and every gradient of a
// training step.

#include <cmath>
#include <string>
#include <vector>

#include "dflash/data/memory_sample.hpp"
#include "dflash/model/draft_model.hpp"
#include "dflash/train/draft_loss.hpp"
#include "golden_runner/golden.hpp"
#include "golden_runner/on_backend.hpp"

namespace golden {

using namespace dflash;

/// A case's config is flat; published files keep DFlash's own keys in dflash_config.
inline DraftConfig draft_config(const nlohmann::json& flat, const std::string& name) {
  nlohmann::json config = flat;
  config["dflash_config"] = {{"target_layer_ids", flat.at("target_layer_ids")},
                             {"mask_token_id", flat.at("mask_token_id")}};
  return DraftConfig::from_json(config, name);
}

template <Backend B>
struct Draft {
  Draft(B& backend, const GoldenCase& c)
      : config(draft_config(c.settings.at("config"), c.name)),
        model(DFlashBlock(LocalAttention(backend), config.shape), config),
        weights(backend, config) {
    for (const ParameterSlot& slot : weights.slots()) {
      const auto values = there(backend, c.read<Number<typename B::value_type>>(slot.name));
      expects(values.size() == slot.size, "a weight has the config's shape");
      backend.copy(values.view().data, weights.flat().data + slot.offset, slot.size);
    }
  }

  DraftConfig config;
  DraftModel<DFlashBlock<LocalAttention<B>>> model;
  Parameters<B> weights;
  typename decltype(model)::Saved saved;
};

/// The rows of a case as samples, and their kept blocks.
struct Rows {
  std::vector<MemorySample> memory;
  std::vector<Sample> samples;
  std::vector<Blocks> blocks;
  std::vector<std::pair<index_t, index_t>> kept;  // (row, block) of each kept block, in order

  Rows(const GoldenCase& c, const std::string& features_name, index_t block_size) {
    const auto shape = c.shape(features_name);
    const index_t rows = shape[0], length = shape[1], width = shape[2];
    const auto features = c.read<float>(features_name);
    const auto anchors = c.read<std::int64_t>("anchors");
    const auto keep = c.read<std::uint8_t>("keep");
    const bool text = c.has("input_ids");
    const auto tokens = text ? c.read<std::int32_t>("input_ids")
                             : std::vector<std::int32_t>(std::size_t(rows * length), 0);
    const auto mask = text ? c.read<std::uint8_t>("loss_mask")
                           : std::vector<std::uint8_t>(std::size_t(rows * length), 1);
    const index_t n = index_t(anchors.size()) / rows;
    memory.reserve(std::size_t(rows));
    for (index_t b = 0; b < rows; ++b) {
      const auto at = b * length;
      memory.push_back({{std::to_string(b),
                         {tokens.begin() + at, tokens.begin() + at + length},
                         {mask.begin() + at, mask.begin() + at + length}},
                        std::make_shared<MemoryFeatures>(
                            std::vector<float>(features.begin() + at * width,
                                               features.begin() + (at + length) * width),
                            width)});
      samples.push_back(memory.back());
      std::vector<index_t> chosen;
      for (index_t j = 0; j < n; ++j)
        if (keep[std::size_t(b * n + j)] != 0) {
          chosen.push_back(anchors[std::size_t(b * n + j)]);
          kept.push_back({b, j});
        }
      blocks.push_back(blocks_at(memory.back().text.tokens, memory.back().text.loss_mask,
                                 std::move(chosen), block_size));
    }
  }

  /// The entries of kept blocks of a tensor (B, N, K, ...) or (B, N * K, ...).
  template <class T>
  std::vector<T> of_kept(const GoldenCase& c, const std::string& name) const {
    const auto all = c.read<T>(name);
    const index_t rows = index_t(memory.size());
    const index_t n = index_t(c.read<std::uint8_t>("keep").size()) / rows;
    const index_t each = index_t(all.size()) / (rows * n);
    std::vector<T> some;
    for (const auto& [b, j] : kept)
      some.insert(some.end(), all.begin() + (b * n + j) * each,
                  all.begin() + (b * n + j + 1) * each);
    return some;
  }
};

template <Backend B>
void forward_case(B& backend, const GoldenCase& c, Report& report, double limit) {
  using T = Number<typename B::value_type>;
  Draft<B> draft(backend, c);
  const index_t k = draft.config.block_size;
  const Rows rows(c, "target_hidden", k);
  const SequenceParallelGroup group(SingleProcess{});
  Batch<B> batch = shard<B>(backend, group, rows.samples, rows.blocks, 0);

  // The case gives embeddings, not tokens: row i of the table is the embedding of block row i.
  const auto embedding = there(backend, rows.of_kept<T>(c, "noise_embedding"));
  std::vector<std::int32_t> ids(std::size_t(batch.tokens.size()));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = std::int32_t(i);
  backend.upload(ids.data(), batch.tokens.view().data, index_t(ids.size()));
  draft.model.forward(draft.weights,
                      {embedding.view().data, {index_t(ids.size()), draft.config.shape.hidden}},
                      batch, draft.saved);

  report.near("inv_freq", draft.config.rope.inverse_frequencies(draft.config.shape.head_dim),
              c.read<double>("inv_freq"), limit);
  const index_t hidden = draft.config.shape.hidden;
  const auto context = c.read<T>("out.context");
  std::vector<T> expected;
  for (std::size_t b = 0; b < rows.blocks.size(); ++b) {
    const auto begin = context.begin() + index_t(b) * c.shape("out.context")[1] * hidden;
    expected.insert(expected.end(), begin, begin + rows.blocks[b].context_rows() * hidden);
  }
  draft.saved.context.rows().visit(
      [&](const auto& rows) { report.near("out.context", host(backend, rows), expected, limit); });
  for (index_t i = 0; i < draft.config.layers; ++i) {
    const std::string name = "out.layer" + std::to_string(i);
    report.near(name, host(backend, draft.saved.x[std::size_t(i + 1)].view()),
                rows.of_kept<T>(c, name), limit);
  }
  report.near("out.hidden", host(backend, draft.saved.output.view()),
              rows.of_kept<T>(c, "out.hidden"), limit);
}

inline LossOptions loss_options(const nlohmann::json& train) {
  LossOptions options;
  options.type = loss_types.named(train.value("loss_type", std::string("dflash")));
  if (train.contains("loss_decay_gamma") && train["loss_decay_gamma"].is_number())
    options.gamma = train["loss_decay_gamma"];
  options.dpace_alpha = train.value("dpace_alpha", 0.5);
  return options;
}

/// What a step may differ by, relative to the largest number of a tensor.
struct StepLimit {
  double value, gradient;
  bool narrow = false;     // too coarse for which word is the likeliest
  double of_bf16_run = 0;  // instead: so many times the errors of the reference's own bfloat16
};

/// A step in bfloat16 against the float64 values: its errors are at most `times` those of the
/// reference's own bfloat16 run, which the case lists.
template <Backend B>
void expect_errors_of_bf16(B& backend, const GoldenCase& c, Report& report, double loss,
                           const Gradients<B>& gradients, double denominator, double times) {
  const double loss_error = relative_error(std::vector{loss}, c.read<double>("ref.out.loss"));
  const double loss_limit = c.settings.at("loss_relative_error_of_bf16_run");
  report.expect(loss_error <= times * loss_limit,
                "out.loss is off by " + std::to_string(loss_error));
  const auto& limits = c.settings.at("grad_relative_norm_error_of_bf16_run");
  const auto flat = host(backend, gradients.flat());
  for (const ParameterSlot& slot : gradients.slots()) {
    std::vector<double> gradient(flat.begin() + slot.offset,
                                 flat.begin() + slot.offset + slot.size);
    for (double& g : gradient) g /= denominator;
    const double error = relative_error(gradient, c.read<double>("ref.grad." + slot.name));
    report.expect(error <= times * limits.at("grad." + slot.name).get<double>(),
                  "grad." + slot.name + " is off by " + std::to_string(error));
  }
}

/// Compares with the tensors `prefix`out.*, `prefix`grad.*.
template <Backend B>
void step_case(B& backend, const GoldenCase& c, Report& report, const std::string& prefix,
               StepLimit limit) {
  using T = Number<typename B::value_type>;
  using Sum = typename B::accumulator_type;
  Draft<B> draft(backend, c);
  const DraftConfig& config = draft.config;
  const index_t k = config.block_size, hidden = config.shape.hidden;
  const Rows rows(c, "hidden_states", k);
  const SequenceParallelGroup group(SingleProcess{});
  const Batch<B> batch = shard<B>(backend, group, rows.samples, rows.blocks, *config.mask_token);
  const auto embedding = there(backend, c.read<T>("embed.weight")),
             head = there(backend, c.read<T>("lm_head.weight"));
  const index_t vocabulary = head.size() / hidden;
  const In<typename B::value_type, 2> embedding_view{embedding.view().data, {vocabulary, hidden}},
      head_view{head.view().data, {vocabulary, hidden}};

  draft.model.forward(draft.weights, embedding_view, batch, draft.saved);
  Tensor<B, typename B::value_type, 2> doutput(backend, {batch.tokens.size(), hidden});
  const LossResult loss =
      draft_loss<B>(backend, head_view, draft.saved.output.view(), batch.labels, batch.weights, k,
                    batch.samples, loss_options(c.settings.at("train")), doutput.view());
  auto gradients = zero_gradients(backend, config);
  draft.model.backward(draft.weights, batch, draft.saved, doutput.view(), gradients);

  const bool pr507 = c.name.find("pr507") != std::string::npos;
  const double epsilon = pr507 ? 1e-6 : 0;  // that rule's addition to both denominators
  const double denominator = loss.denominator + epsilon;
  report.equal("out.noise_ids", host(backend, batch.tokens.view()),
               rows.of_kept<std::int32_t>(c, "out.noise_ids"));
  const auto target = rows.of_kept<std::int32_t>(c, "out.target_ids");
  report.equal("out.target_ids", batch.labels, target);
  if (c.has("out.weights"))
    report.equal("out.weights", batch.weights, rows.of_kept<float>(c, "out.weights"));
  if (limit.of_bf16_run > 0)
    return expect_errors_of_bf16(backend, c, report, loss.numerator / denominator, gradients,
                                 denominator, limit.of_bf16_run);
  report.near("out.hidden", host(backend, draft.saved.output.view()),
              rows.of_kept<T>(c, prefix + "out.hidden"), limit.value);

  // The negative log likelihood of every slot, supervised or not, through the head's operation.
  {
    const index_t n = batch.tokens.size();
    Tensor<B, Sum, 1> nll(backend, {n});
    Tensor<B, std::uint8_t, 1> correct(backend, {n});
    Tensor<B, typename B::value_type, 2> unused(backend, {n, hidden});
    const auto labels = uploaded(backend, batch.labels.data(), n);
    linear_cross_entropy(backend, draft.saved.output.view(), head_view, labels.view(), nll.view(),
                         correct.view(), unused.view());
    report.near("out.nll", host(backend, nll.view()), rows.of_kept<T>(c, prefix + "out.nll"),
                limit.value);
  }

  report.near("out.loss", loss.numerator / denominator, c.read<double>(prefix + "out.loss")[0],
              limit.value);
  if (prefix.empty()) {
    const double supervised = loss.metrics.supervised_slots();
    if (!limit.narrow)
      report.near("out.accuracy", loss.metrics.correct_slots() / (supervised + epsilon),
                  c.read<double>("out.accuracy")[0], limit.value);
    if (c.has("out.loss_num")) {
      report.near("out.loss_num", loss.numerator, c.read<double>("out.loss_num")[0], limit.value);
      report.near("out.loss_den", loss.denominator, c.read<double>("out.loss_den")[0], limit.value);
      if (!limit.narrow)
        report.expect(loss.metrics.correct_slots() == c.read<double>("out.correct")[0],
                      "out.correct");
      report.expect(supervised == c.read<double>("out.accuracy_den")[0], "out.accuracy_den");
    }
  }
  const auto flat = host(backend, gradients.flat());
  for (const ParameterSlot& slot : gradients.slots()) {
    std::vector<Sum> gradient(flat.begin() + slot.offset, flat.begin() + slot.offset + slot.size);
    for (Sum& g : gradient) g = Sum(double(g) / denominator);
    const std::string name = prefix + "grad." + slot.name;
    report.near(name, gradient, c.read<T>(name), limit.gradient);
  }
}

}  // namespace golden
