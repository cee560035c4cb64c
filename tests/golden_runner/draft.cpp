// The draft model: its forward pass, and the loss, metrics and every gradient of a training step.

#include "dflash/cpu.hpp"
#include "dflash/data/memory_sample.hpp"
#include "dflash/model/draft_model.hpp"
#include "dflash/train/draft_loss.hpp"
#include "golden.hpp"

using namespace dflash;

namespace golden {
namespace {

/// A case's config is flat; published files keep DFlash's own keys in dflash_config.
DraftConfig draft_config(const nlohmann::json& flat, const std::string& name) {
  nlohmann::json config = flat;
  config["dflash_config"] = {{"target_layer_ids", flat.at("target_layer_ids")},
                             {"mask_token_id", flat.at("mask_token_id")}};
  return DraftConfig::from_json(config, name);
}

template <class T>
struct Draft {
  using B = CpuBackend<T>;

  explicit Draft(const GoldenCase& c, Way way = {cpu_paths().back(), CpuPrecision::fp32})
      : cpu(1, way.path, way.precision),
        config(draft_config(c.settings.at("config"), c.name)),
        model(DFlashBlock(LocalAttention(cpu), config.shape), config),
        weights(cpu, config) {
    for (const ParameterSlot& slot : weights.slots()) {
      const auto values = c.read<T>(slot.name);
      expects(index_t(values.size()) == slot.size, "a weight has the config's shape");
      cpu.upload(values.data(), weights.flat().data + slot.offset, slot.size);
    }
  }

  B cpu;
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

template <class T>
std::vector<T> values(View<T, 2> v) {
  return {v.data, v.data + v.size()};
}

template <class T>
void forward_case(const GoldenCase& c, Report& report) {
  using B = CpuBackend<T>;
  const double tolerance = sizeof(T) == 8 ? 1e-12 : 1e-5;
  Draft<T> draft(c);
  auto& cpu = draft.cpu;
  const index_t k = draft.config.block_size;
  const Rows rows(c, "target_hidden", k);
  const SequenceParallelGroup group(SingleProcess{});
  Batch<B> batch = shard<B>(cpu, group, rows.samples, rows.blocks, 0);

  // The case gives embeddings, not tokens: row i of the table is the embedding of block row i.
  const auto embedding = rows.of_kept<T>(c, "noise_embedding");
  std::vector<std::int32_t> ids(std::size_t(batch.tokens.size()));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = std::int32_t(i);
  cpu.upload(ids.data(), batch.tokens.view().data, index_t(ids.size()));
  draft.model.forward(draft.weights,
                      {embedding.data(), {index_t(ids.size()), draft.config.shape.hidden}}, batch,
                      draft.saved);

  report.near("inv_freq", draft.config.rope.inverse_frequencies(draft.config.shape.head_dim),
              c.read<double>("inv_freq"), tolerance);
  const index_t hidden = draft.config.shape.hidden;
  const auto context = c.read<T>("out.context");
  std::vector<T> expected;
  for (std::size_t b = 0; b < rows.blocks.size(); ++b) {
    const auto begin = context.begin() + index_t(b) * c.shape("out.context")[1] * hidden;
    expected.insert(expected.end(), begin, begin + rows.blocks[b].context_rows() * hidden);
  }
  report.near("out.context", values(draft.saved.context.view()), expected, tolerance);
  for (index_t i = 0; i < draft.config.layers; ++i) {
    const std::string name = "out.layer" + std::to_string(i);
    report.near(name, values(draft.saved.x[std::size_t(i + 1)].view()), rows.of_kept<T>(c, name),
                tolerance);
  }
  report.near("out.hidden", values(draft.saved.output.view()), rows.of_kept<T>(c, "out.hidden"),
              tolerance);
}

LossOptions loss_options(const nlohmann::json& train) {
  LossOptions options;
  options.type = loss_type_named(train.value("loss_type", std::string("dflash")));
  if (train.contains("loss_decay_gamma") && train["loss_decay_gamma"].is_number())
    options.gamma = train["loss_decay_gamma"];
  options.dpace_alpha = train.value("dpace_alpha", 0.5);
  return options;
}

struct Tolerance {
  double value, gradient;
};

/// |actual - expected| / |expected|, of vectors.
template <class T>
double relative_error(const std::vector<T>& actual, const std::vector<double>& expected) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double(actual[i]) - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return std::sqrt(difference / size);
}

/// A step in bfloat16 against the float64 values: its errors are at most those of the reference's
/// own bfloat16 run, which the case lists.
void expect_errors_of_bf16(const GoldenCase& c, Report& report, double loss,
                           const Parameters<CpuBackend<float>>& gradients, double denominator) {
  const double loss_error = relative_error<double>({loss}, c.read<double>("ref.out.loss"));
  report.expect(loss_error <= c.settings.at("loss_relative_error_of_bf16_run").get<double>(),
                "out.loss is off by " + std::to_string(loss_error));
  const auto& limits = c.settings.at("grad_relative_norm_error_of_bf16_run");
  for (const ParameterSlot& slot : gradients.slots()) {
    const float* const from = gradients.flat().data + slot.offset;
    std::vector<float> gradient(from, from + slot.size);
    for (float& g : gradient) g = float(double(g) / denominator);
    const double error = relative_error(gradient, c.read<double>("ref.grad." + slot.name));
    report.expect(error <= limits.at("grad." + slot.name).get<double>(),
                  "grad." + slot.name + " is off by " + std::to_string(error));
  }
}

/// Compares with the tensors `prefix`out.*, `prefix`grad.*.
template <class T>
void step_case(const GoldenCase& c, Report& report, const std::string& prefix, Tolerance limit,
               Way way) {
  using B = CpuBackend<T>;
  Draft<T> draft(c, way);
  auto& cpu = draft.cpu;
  const DraftConfig& config = draft.config;
  const index_t k = config.block_size, hidden = config.shape.hidden;
  const Rows rows(c, "hidden_states", k);
  const SequenceParallelGroup group(SingleProcess{});
  const Batch<B> batch = shard<B>(cpu, group, rows.samples, rows.blocks, *config.mask_token);
  const auto embedding = c.read<T>("embed.weight"), head = c.read<T>("lm_head.weight");
  const index_t vocabulary = index_t(head.size()) / hidden;
  const In<T, 2> embedding_view{embedding.data(), {vocabulary, hidden}},
      head_view{head.data(), {vocabulary, hidden}};

  draft.model.forward(draft.weights, embedding_view, batch, draft.saved);
  Tensor<B, T, 2> doutput(cpu, {batch.tokens.size(), hidden});
  const LossResult loss =
      draft_loss<B>(cpu, head_view, draft.saved.output.view(), batch.labels, batch.weights, k,
                    batch.samples, loss_options(c.settings.at("train")), doutput.view());
  auto gradients = zero_gradients(cpu, config);
  draft.model.backward(draft.weights, batch, draft.saved, doutput.view(), gradients);

  const bool pr507 = c.name.find("pr507") != std::string::npos;
  const double epsilon = pr507 ? 1e-6 : 0;  // that rule's addition to both denominators
  const double denominator = loss.denominator + epsilon;
  const std::vector<std::int32_t> tokens(batch.tokens.view().data,
                                         batch.tokens.view().data + batch.tokens.size());
  report.equal("out.noise_ids", tokens, rows.of_kept<std::int32_t>(c, "out.noise_ids"));
  const auto target = rows.of_kept<std::int32_t>(c, "out.target_ids");
  report.equal("out.target_ids", batch.labels, target);
  if (c.has("out.weights"))
    report.equal("out.weights", batch.weights, rows.of_kept<float>(c, "out.weights"));
  if constexpr (std::is_same_v<T, float>)
    if (way.precision == CpuPrecision::bf16)
      return expect_errors_of_bf16(c, report, loss.numerator / denominator, gradients, denominator);
  report.near("out.hidden", values(draft.saved.output.view()),
              rows.of_kept<T>(c, prefix + "out.hidden"), limit.value);

  // The negative log likelihood of every slot, supervised or not, through the head's operation.
  {
    const index_t n = batch.tokens.size();
    Tensor<B, T, 1> nll(cpu, {n});
    Tensor<B, std::uint8_t, 1> correct(cpu, {n});
    Tensor<B, T, 2> unused(cpu, {n, hidden});
    linear_cross_entropy(cpu, draft.saved.output.view(), head_view,
                         View<const std::int32_t, 1>{batch.labels.data(), {n}}, nll.view(),
                         correct.view(), unused.view());
    report.near("out.nll", std::vector<T>(nll.view().data, nll.view().data + n),
                rows.of_kept<T>(c, prefix + "out.nll"), limit.value);
  }

  report.near("out.loss", loss.numerator / denominator, c.read<double>(prefix + "out.loss")[0],
              limit.value);
  if (prefix.empty()) {
    const double supervised = loss.metrics.supervised_slots();
    report.near("out.accuracy", loss.metrics.correct_slots() / (supervised + epsilon),
                c.read<double>("out.accuracy")[0], limit.value);
    if (c.has("out.loss_num")) {
      report.near("out.loss_num", loss.numerator, c.read<double>("out.loss_num")[0], limit.value);
      report.near("out.loss_den", loss.denominator, c.read<double>("out.loss_den")[0], limit.value);
      report.expect(loss.metrics.correct_slots() == c.read<double>("out.correct")[0],
                    "out.correct");
      report.expect(supervised == c.read<double>("out.accuracy_den")[0], "out.accuracy_den");
    }
  }
  for (const ParameterSlot& slot : gradients.slots()) {
    std::vector<T> gradient(gradients.flat().data + slot.offset,
                            gradients.flat().data + slot.offset + slot.size);
    for (T& g : gradient) g = T(double(g) / denominator);
    const std::string name = prefix + "grad." + slot.name;
    report.near(name, gradient, c.read<T>(name), limit.gradient);
  }
}

}  // namespace

void run_draft_forward(const GoldenCase& c, Report& report) {
  c.is_double() ? forward_case<double>(c, report) : forward_case<float>(c, report);
}

std::vector<Way> ways_of(const std::string& kind) {
  // Paths beyond avx512 have no products of their own in fp32.
  std::vector<Way> ways;
  for (CpuPath path : all_cpu_paths)
    for (CpuPrecision precision : all_cpu_precisions) {
      const bool own = precision != CpuPrecision::fp32 || path <= CpuPath::avx512,
                 bounds = precision != CpuPrecision::bf16 || kind == "train_step_bf16";
      if (own && bounds) ways.push_back({path, precision});
    }
  return ways;
}

Tolerance tolerance_of(Way way) {
  return way.precision == CpuPrecision::fp32 ? Tolerance{1e-5, 3e-5} : Tolerance{1e-4, 1e-4};
}

void run_train_step(const GoldenCase& c, Way way, Report& report) {
  if (c.is_double()) {
    step_case<double>(c, report, "", {1e-12, 1e-9}, way);
  } else {
    step_case<float>(c, report, "", tolerance_of(way), way);
  }
}

// Held against the float64 values of the same inputs.
void run_train_step_bf16(const GoldenCase& c, Way way, Report& report) {
  step_case<float>(c, report, "ref.", tolerance_of(way), way);
  if (way.precision == CpuPrecision::fp32) step_case<double>(c, report, "ref.", {1e-12, 1e-9}, way);
}

}  // namespace golden
