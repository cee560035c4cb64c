#pragma once

// A target model on any backend: every hidden state, the logits, and the features that a draft
// learns from.

#include <algorithm>
#include <string>
#include <vector>

#include "dflash/model/target_model.hpp"
#include "golden_runner/golden.hpp"
#include "golden_runner/on_backend.hpp"

namespace golden {

using namespace dflash;

/// The target of a case; what it gives, and what the case has, is on the host.
template <Backend B>
class TargetRunner {
 public:
  using T = Number<typename B::value_type>;

  TargetRunner(B& backend, const GoldenCase& c, Report& report, double limit)
      : backend_(&backend),
        report_(&report),
        limit_(limit),
        model_(backend, c.folder / c.settings.at("model_dir").get<std::string>()) {}

  const TargetConfig& config() const { return model_.config(); }
  TargetOutput<B> prefill(const std::vector<std::int32_t>& tokens,
                          const TargetRequest& request) const {
    return model_.prefill(tokens, std::vector<index_t>{0, index_t(tokens.size())}, request);
  }
  const TargetModel<B>& model() const { return model_; }

  /// Each row is compared with its own scale: real models have rows a hundred times the others. All
  /// together may be off by half of what a single number may.             expected (N * columns)
  void near(const std::string& what, View<const typename B::value_type, 2> actual,
            const std::vector<T>& expected) const {
    const index_t width = actual.shape[1];
    report_->expect(actual.size() == index_t(expected.size()), what + ": sizes differ");
    if (actual.size() != index_t(expected.size())) return;
    const auto values = host(*backend_, actual);
    for (index_t n = 0; n < actual.shape[0]; ++n)
      report_->near(what + ", row " + std::to_string(n), slice(values, n * width, width),
                    slice(expected, n * width, width), limit_);
    const double all = relative_error(values, expected);
    report_->expect(all <= limit_ / 2, what + ": off by " + std::to_string(all));
  }
  static std::vector<T> slice(const std::vector<T>& all, index_t begin, index_t size) {
    return {all.begin() + begin, all.begin() + begin + size};
  }

 private:
  B* backend_;
  Report* report_;
  double limit_;
  TargetModel<B> model_;
};

/// Every layer's output, the last hidden state and the logits, of a prefill; and the logits of
/// decoding the same tokens with a cache, a few at a time.
template <Backend B>
void target_case(B& backend, const GoldenCase& c, Report& report, double limit) {
  using T = Number<typename B::value_type>;
  const TargetRunner<B> t(backend, c, report, limit);
  const auto& config = t.config();
  const auto tokens = c.read<std::int32_t>("input_ids");
  const auto hidden = c.read<T>("hidden_states"), logits = c.read<T>("logits");
  const index_t size = index_t(tokens.size()) * config.hidden;

  report.near("inv_freq", config.rope.inverse_frequencies(config.head_dim), c.read<T>("inv_freq"),
              std::min(limit, 1e-5));
  t.near("embedding output", t.model().embed(tokens).view(), t.slice(hidden, 0, size));
  for (index_t layer = 0; layer < config.layers; ++layer) {
    // One layer a time: the forward that stops there must give what the whole one gives.
    const bool last = layer + 1 == config.layers;
    t.near("output of layer " + std::to_string(layer),
           t.prefill(tokens, {.layers = {layer}}).features.view(),
           last ? c.read<T>("last_prenorm") : t.slice(hidden, (layer + 1) * size, size));
  }
  const auto output = t.prefill(tokens, {.layers = {}, .last_hidden = true, .logits = Logits::all});
  t.near("last hidden state", output.last_hidden.view(),
         t.slice(hidden, config.layers * size, size));
  t.near("logits", output.logits.view(), logits);

  auto cache = t.model().cache();
  for (std::size_t n : {std::size_t(1), std::size_t(7), tokens.size() - 9, std::size_t(1)}) {
    const index_t begin = cache.length();
    const auto some = std::span(tokens).subspan(std::size_t(begin), n);
    const auto step = t.model().forward(some, cache, {.layers = {}, .logits = Logits::all});
    t.near("logits of cached decoding from row " + std::to_string(begin), step.logits.view(),
           t.slice(logits, begin * config.vocabulary, index_t(n) * config.vocabulary));
  }
}

/// The captured layers of a sample, and of samples packed.
template <Backend B>
void features_case(B& backend, const GoldenCase& c, Report& report, double limit) {
  using T = Number<typename B::value_type>;
  const TargetRunner<B> t(backend, c, report, limit);
  report.equal("num_target_layers", std::vector{t.config().layers},
               std::vector{c.settings.at("num_target_layers").get<index_t>()});
  const auto tokens = c.read<std::int32_t>("input_ids");
  for (const auto& [count, ids] : c.settings.at("layer_ids").items()) {
    const auto layers = ids.template get<std::vector<index_t>>();
    t.near("features.n" + count, t.prefill(tokens, {.layers = layers}).features.view(),
           c.read<T>("features.n" + count));
  }
  if (!c.has("batch_input_ids")) return;
  const auto layers = c.settings.at("batch_layer_ids").get<std::vector<index_t>>();
  const auto lengths = c.settings.at("batch_lengths").get<std::vector<index_t>>();
  const auto padded = c.read<std::int32_t>("batch_input_ids");
  const auto expected = c.read<T>("batch_features");
  const index_t all = t.config().hidden * index_t(layers.size()),
                padded_length = c.shape("batch_input_ids")[1];
  std::vector<std::int32_t> pack;
  std::vector<index_t> offsets{0};
  std::vector<T> valid;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const auto sample = padded.begin() + index_t(i) * padded_length;
    const auto rows = t.slice(expected, index_t(i) * padded_length * all, lengths[i] * all);
    pack.insert(pack.end(), sample, sample + lengths[i]);
    valid.insert(valid.end(), rows.begin(), rows.end());
    offsets.push_back(index_t(pack.size()));
  }
  t.near("batch_features", t.model().prefill(pack, offsets, {.layers = layers}).features.view(),
         valid);
}

}  // namespace golden
