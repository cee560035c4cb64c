// A hundred recorded training steps, walked again through the whole pipeline: conversations to
// tokens, the target's features, blocks, loss, gradients, clip and AdamW.

#include "dflash/cpu.hpp"
#include "dflash/data/memory_sample.hpp"
#include "dflash/data/sample_filter.hpp"
#include "dflash/model/draft_model.hpp"
#include "dflash/model/target_model.hpp"
#include "dflash/text.hpp"
#include "dflash/train/adamw.hpp"
#include "dflash/train/draft_loss.hpp"
#include "dflash/train/schedule.hpp"
#include "golden.hpp"

using namespace dflash;

namespace golden {
namespace {

using B = CpuBackend<float>;

DraftConfig draft_config(nlohmann::json draft, const nlohmann::json& target) {
  draft["num_target_layers"] = target.at("num_hidden_layers");
  draft["vocab_size"] = target.at("vocab_size");
  draft["dflash_config"] = {{"target_layer_ids", draft.at("target_layer_ids")},
                            {"mask_token_id", draft.at("mask_token_id")}};
  return DraftConfig::from_json(draft, "replay");
}

/// All conversations with two neighbouring supervised tokens, in the order of the file.
std::vector<TokenizedSample> kept_samples(const std::filesystem::path& folder,
                                          const nlohmann::json& settings) {
  const Tokenizer tokenizer(folder);
  const Chat chat = chat_for(tokenizer, "lfm");
  SampleOptions options;
  options.max_length = settings.at("max_length");
  const FilterOptions filter{.filter = SampleFilter::adjacent_pair};
  std::vector<TokenizedSample> samples;
  for_each_sample(folder / settings.at("data").get<std::string>(), chat, options,
                  [&](TokenizedSample sample) {
                    if (!filter.reason_to_drop(sample.loss_mask))
                      samples.push_back(std::move(sample));
                  });
  return samples;
}

struct Curve {
  std::vector<double> loss, numerator, denominator, accuracy, norm, rate;
};

}  // namespace

void run_replay(const GoldenCase& c, Report& report) {
  const auto folder =
      std::filesystem::path(DFLASH_EXAMPLE_DATA) / c.settings.at("target").get<std::string>();
  const auto& train = c.settings.at("train");
  B cpu(2);
  const TargetModel<B> target(cpu, folder);
  const DraftConfig config = draft_config(c.settings.at("draft"), target.config().json);
  const LocalAttention attention(cpu);
  const DFlashBlock block(attention, config.shape);
  const DraftModel model(block, config);
  Parameters<B> weights(cpu, config);
  for (const ParameterSlot& slot : weights.slots()) {
    const auto values = c.read<float>("init." + slot.name);
    cpu.upload(values.data(), weights.flat().data + slot.offset, slot.size);
  }
  const auto initial =
      std::vector<float>(weights.flat().data, weights.flat().data + weights.flat().size());
  auto gradients = zero_gradients(cpu, config);
  AdamW optimizer(cpu, weights.flat(), weights.slots(),
                  {.beta1 = train.at("betas")[0],
                   .beta2 = train.at("betas")[1],
                   .eps = train.at("eps"),
                   .decay = train.at("weight_decay"),
                   .max_grad_norm = train.at("max_grad_norm")});
  const LossOptions loss_options{.gamma = train.at("loss_decay_gamma")};
  const auto texts = kept_samples(folder, c.settings);

  const auto order = c.read<index_t>("samples"), anchors = c.read<index_t>("anchors");
  const auto keep = c.read<std::uint8_t>("keep");
  const auto rates = c.read<double>("learning_rate");
  const index_t steps = c.settings.at("steps"), batch_size = c.shape("samples")[1],
                most = c.shape("anchors")[2];
  Curve curve;
  for (index_t step = 0; step < steps; ++step) {
    std::vector<std::int32_t> tokens;
    std::vector<index_t> offsets{0};
    for (index_t i = 0; i < batch_size; ++i) {
      const auto& text = texts.at(std::size_t(order[std::size_t(step * batch_size + i)]));
      tokens.insert(tokens.end(), text.tokens.begin(), text.tokens.end());
      offsets.push_back(index_t(tokens.size()));
    }
    const auto captured = target.prefill(tokens, offsets, {.layers = config.target_layer_ids});
    const auto features = captured.features.view();
    std::vector<MemorySample> memory;
    std::vector<Blocks> blocks;
    for (index_t i = 0; i < batch_size; ++i) {
      const index_t at = step * batch_size + i;
      const auto rows = features.rows({offsets[std::size_t(i)], offsets[std::size_t(i + 1)]});
      memory.push_back(
          {texts[std::size_t(order[std::size_t(at)])],
           std::make_shared<MemoryFeatures>(std::vector<float>(rows.data, rows.data + rows.size()),
                                            rows.shape[1])});
      std::vector<index_t> chosen;
      for (index_t n = at * most; n < (at + 1) * most; ++n)
        if (keep[std::size_t(n)] != 0) chosen.push_back(anchors[std::size_t(n)]);
      blocks.push_back(blocks_at(memory.back().text.tokens, memory.back().text.loss_mask,
                                 std::move(chosen), config.block_size));
    }
    const std::vector<Sample> samples(memory.begin(), memory.end());
    const auto batch =
        shard(cpu, SequenceParallelGroup(SingleProcess{}), samples, blocks, *config.mask_token);
    std::remove_const_t<decltype(model)>::Saved saved;
    model.forward(weights, target.embedding(), batch, saved);
    Tensor<B, float, 2> doutput(cpu, {batch.tokens.size(), config.shape.hidden});
    const LossResult loss =
        draft_loss(cpu, target.lm_head(), saved.output.view(), batch.labels, batch.weights,
                   config.block_size, batch.samples, loss_options, doutput.view());
    fill(cpu, gradients.flat(), 0);
    model.backward(weights, batch, saved, doutput.view(), gradients);
    curve.rate.push_back(rates[std::size_t(step)]);
    curve.norm.push_back(optimizer.step(weights.flat(), gradients.flat(), rates[std::size_t(step)],
                                        loss.denominator));
    curve.loss.push_back(loss.loss());
    curve.numerator.push_back(loss.numerator);
    curve.denominator.push_back(loss.denominator);
    curve.accuracy.push_back(loss.metrics.accuracy());
  }

  // The recorded rates are the reference's; the closed form differs from them by its quirk alone.
  const Schedule schedule{.peak = train.at("learning_rate"),
                          .warmup = train.at("warmup_steps"),
                          .total = train.at("total_steps")};
  for (index_t step = 0; step < steps; ++step)
    report.near("learning rate", schedule(step), rates[std::size_t(step)], 1e-5);
  const auto loss = c.read<double>("loss"), norm = c.read<double>("grad_norm"),
             accuracy = c.read<double>("accuracy"), numerator = c.read<double>("loss_numerator"),
             denominator = c.read<double>("loss_denominator");
  double worst[2] = {0, 0};
  for (index_t i = 0; i < steps; ++i) {
    const auto s = std::size_t(i);
    const double limit = i < 10 ? 1e-5 : 1e-3;
    const std::string at = " of step " + std::to_string(i);
    report.near("loss" + at, curve.loss[s], loss[s], limit);
    report.near("gradient norm" + at, curve.norm[s], norm[s], limit);
    report.near("numerator" + at, curve.numerator[s], numerator[s], limit);
    report.near("denominator" + at, curve.denominator[s], denominator[s], 1e-6);
    worst[i < 10 ? 0 : 1] =
        std::max(worst[i < 10 ? 0 : 1], std::abs(curve.loss[s] - loss[s]) / loss[s]);
  }
  std::printf(
      "  %s: largest relative difference of a loss %.1e in the first ten steps, %.1e after\n",
      c.name.c_str(), worst[0], worst[1]);
  report.near("accuracies", curve.accuracy, accuracy, 5e-3, 1.0);
  for (const ParameterSlot& slot : weights.slots()) {
    const auto expected = c.read<float>("final." + slot.name);
    float scale = 0;
    for (index_t i = 0; i < slot.size; ++i)
      scale = std::max(scale, std::abs(initial[std::size_t(slot.offset + i)]));
    const auto begin = weights.flat().data + slot.offset;
    report.near("final " + slot.name, std::vector<float>(begin, begin + slot.size), expected, 1e-3,
                scale);
  }
}

}  // namespace golden
