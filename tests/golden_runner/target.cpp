#include "dflash/cpu.hpp"
#include "dflash/model/target_model.hpp"
#include "golden.hpp"

namespace golden {
namespace {

using dflash::index_t;

template <class T>
struct Target {
  using B = dflash::CpuBackend<T>;

  explicit Target(const GoldenCase& c)
      : model(backend, c.folder / c.settings.at("model_dir").get<std::string>()) {}

  std::vector<T> host(const dflash::Tensor<B, T, 2>& t) const {
    return {t.view().data, t.view().data + t.size()};
  }
  dflash::TargetOutput<B> run(const std::vector<std::int32_t>& tokens,
                              const dflash::TargetRequest& request) const {
    return model.prefill(tokens, std::vector<index_t>{0, index_t(tokens.size())}, request);
  }

  B backend;
  dflash::TargetModel<B> model;
};

template <class T>
constexpr double tolerance = std::is_same_v<T, double> ? 1e-12 : 1e-5;

/// Each row is compared with its own scale: real models have rows a hundred times the others.
template <class T>
void near_by_row(Report& report, const std::string& what, const std::vector<T>& actual,
                 const std::vector<T>& expected, index_t width) {
  report.expect(actual.size() == expected.size(), what + ": sizes differ");
  if (actual.size() != expected.size()) return;
  for (std::size_t at = 0; at < expected.size(); at += std::size_t(width)) {
    const auto row = [&](const std::vector<T>& all) {
      return std::vector<T>(all.begin() + std::ptrdiff_t(at),
                            all.begin() + std::ptrdiff_t(at) + width);
    };
    report.near(what + ", row " + std::to_string(index_t(at) / width), row(actual), row(expected),
                tolerance<T>);
  }
}

template <class T>
std::vector<T> slice(const std::vector<T>& all, index_t begin, index_t size) {
  return {all.begin() + begin, all.begin() + begin + size};
}

template <class T>
void target(const GoldenCase& c, Report& report) {
  const Target<T> t(c);
  const auto& config = t.model.config();
  const auto tokens = c.read<std::int32_t>("input_ids");
  const auto hidden = c.read<T>("hidden_states");
  const index_t width = config.hidden, size = index_t(tokens.size()) * width;

  auto frequencies = config.rope.inverse_frequencies(config.head_dim);
  report.near("inv_freq", frequencies, c.read<T>("inv_freq"), tolerance<T>);
  std::vector<T> embedded;
  for (const auto token : tokens) {
    const T* row = &t.model.embedding()(token, 0);
    embedded.insert(embedded.end(), row, row + width);
  }
  near_by_row(report, "embedding output", embedded, slice(hidden, 0, size), width);
  for (index_t layer = 0; layer < config.layers; ++layer) {
    // One layer a time: the forward that stops there must give what the whole one gives.
    const bool last = layer + 1 == config.layers;
    near_by_row(report, "output of layer " + std::to_string(layer),
                t.host(t.run(tokens, {.layers = {layer}}).features),
                last ? c.read<T>("last_prenorm") : slice(hidden, (layer + 1) * size, size), width);
  }
  const auto output =
      t.run(tokens, {.layers = {}, .last_hidden = true, .logits = dflash::Logits::all});
  near_by_row(report, "last hidden state", t.host(output.last_hidden),
              slice(hidden, config.layers * size, size), width);
  near_by_row(report, "logits", t.host(output.logits), c.read<T>("logits"), config.vocabulary);
}

template <class T>
void features(const GoldenCase& c, Report& report) {
  const Target<T> t(c);
  const index_t width = t.model.config().hidden;
  report.equal("num_target_layers", std::vector{t.model.config().layers},
               std::vector{c.settings.at("num_target_layers").get<index_t>()});
  const auto tokens = c.read<std::int32_t>("input_ids");
  for (const auto& [count, ids] : c.settings.at("layer_ids").items()) {
    const auto layers = ids.template get<std::vector<index_t>>();
    near_by_row(report, "features.n" + count, t.host(t.run(tokens, {.layers = layers}).features),
                c.read<T>("features.n" + count), width);
  }
  if (!c.has("batch_input_ids")) return;
  const auto layers = c.settings.at("batch_layer_ids").get<std::vector<index_t>>();
  const auto lengths = c.settings.at("batch_lengths").get<std::vector<index_t>>();
  const auto padded = c.read<std::int32_t>("batch_input_ids");
  const auto expected = c.read<T>("batch_features");
  const index_t all = width * index_t(layers.size()), padded_length = c.shape("batch_input_ids")[1];
  std::vector<std::int32_t> pack;
  std::vector<index_t> offsets{0};
  std::vector<T> valid;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const auto sample = slice(padded, index_t(i) * padded_length, lengths[i]);
    const auto rows = slice(expected, index_t(i) * padded_length * all, lengths[i] * all);
    pack.insert(pack.end(), sample.begin(), sample.end());
    valid.insert(valid.end(), rows.begin(), rows.end());
    offsets.push_back(index_t(pack.size()));
  }
  near_by_row(report, "batch_features",
              t.host(t.model.prefill(pack, offsets, {.layers = layers}).features), valid, width);
}

}  // namespace

void run_target(const GoldenCase& c, Report& report) {
  c.is_double() ? target<double>(c, report) : target<float>(c, report);
}

void run_features(const GoldenCase& c, Report& report) {
  c.is_double() ? features<double>(c, report) : features<float>(c, report);
}

}  // namespace golden
