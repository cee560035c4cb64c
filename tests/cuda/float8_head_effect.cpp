// What a head in bfloat16 and one in float8 change of a draft's loss and gradient, beside one in
// float, on samples of a store. The two run on the emulated device, everything else on the CPU.
//   float8_head_effect TARGET DRAFT STORE [BATCHES]                     batches of four samples

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "dflash/cpu.hpp"
#include "dflash/cuda.cuh"
#include "dflash/dflash.hpp"

using namespace dflash;

namespace {

using Cpu = CpuBackend<float>;
using Narrow = CudaBackend<bfloat16>;
using Floats = std::vector<float>;

template <class To, class From>
std::vector<To> as(const From& from) {
  std::vector<To> to;
  for (const auto& v : from) to.push_back(To(float(v)));
  return to;
}

/// Numbers of any backend, in float.
template <class B, class T>
Floats on_host(B& backend, View<T, 2> x) {
  return as<float>(downloaded(backend, x));
}

/// The loss of some hidden rows and its gradient, under one kind of head.
struct Outcome {
  LossResult loss;
  Floats doutput;
};
struct Rows {
  Floats hidden;
  index_t width, block_size, samples;
  std::span<const std::int32_t> labels;
  std::span<const float> weights;
  LossOptions options;

  template <class B, class Head>
  Outcome under(B& backend, const Head& head) const {
    using T = typename B::value_type;
    const index_t n = index_t(hidden.size()) / width;
    Tensor<B, T, 2> x(backend, {n, width}), dx(backend, {n, width});
    const auto narrow = as<T>(hidden);
    backend.upload(narrow.data(), x.view().data, x.size());
    LossResult loss = draft_loss(backend, head, x.view(), labels, weights, block_size, samples,
                                 options, dx.view());
    return {std::move(loss), on_host(backend, dx.view())};
  }
};

/// How far vectors are from those they should be.
class Difference {
 public:
  void add(const Floats& actual, const Floats& expected) {
    double ab = 0, aa = 0, bb = 0;
    for (std::size_t i = 0; i < actual.size(); ++i) {
      const auto a = double(actual[i]), b = double(expected[i]);
      ab += a * b, aa += a * a, bb += b * b;
    }
    const double cosine = ab / std::sqrt(aa * bb);
    cosine_ += cosine, least_ = std::min(least_, cosine), norm_ += std::sqrt(aa / bb), ++count_;
  }
  std::string text() const {
    char line[128];
    std::snprintf(line, sizeof line, "cosine %.5f (least %.5f), norm %.4f", cosine_ / count_,
                  least_, norm_ / count_);
    return line;
  }

 private:
  double cosine_ = 0, least_ = 1, norm_ = 0, count_ = 0;
};

/// What one kind of head has come to over all batches.
struct Kind {
  std::string name;
  std::function<Outcome(const Rows&)> of;
  LossResult loss;
  Difference output, weights;
};

void run(const std::string& target_folder, const std::string& draft, const std::string& store,
         index_t batches) {
  Cpu cpu(1);
  Narrow cuda;
  const DraftConfig config = DraftConfig::read(draft + "/config.json");
  const OfflineShardDataset dataset(store, {.model_type = "dflash"});
  const FrozenTarget target(cpu, target_folder);
  const auto head_rows = target.lm_head().visit([](const auto& rows) {
    return as<bfloat16>(std::span(rows.data, std::size_t(rows.size())));
  });
  Tensor<Narrow, bfloat16, 2> head(cuda, {target.vocabulary(), target.hidden()});
  cuda.upload(head_rows.data(), head.view().data, head.size());
  const auto plain = In<bfloat16, 2>(head.view());
  const auto float8 = float8_head(cuda, plain);

  SequenceParallelGroup<SingleProcess> group;
  DraftModel model(DFlashBlock(UlyssesAttention(cpu, group), config.shape), config);
  const auto weights = read_parameters(cpu, config, draft);
  auto gradients = zero_gradients(cpu, config);
  Kind kinds[] = {
      {"float", [&](const Rows& r) { return r.under(cpu, target.lm_head()); }, {}, {}, {}},
      {"bfloat16", [&](const Rows& r) { return r.under(cuda, head.view()); }, {}, {}, {}},
      {"float8", [&](const Rows& r) { return r.under(cuda, float8); }, {}, {}, {}}};
  for (Kind& kind : kinds) kind.loss = LossResult(config.block_size);

  for (index_t first = 0; first + 4 <= std::min(dataset.size(), 4 * batches); first += 4) {
    std::vector<Sample> samples;
    std::vector<Blocks> blocks;
    for (index_t i = first; i < first + 4; ++i) {
      samples.push_back(dataset[i]);
      blocks.push_back(sample_blocks(samples.back(), {.count = 64, .size = config.block_size},
                                     /*seed=*/42, /*epoch=*/0));
    }
    const auto batch = shard(cpu, group, samples, blocks, *config.mask_token);
    typename decltype(model)::Saved saved;
    model.forward(weights, target.embedding(), batch, saved);
    const Rows rows{on_host(cpu, saved.output.view()),
                    config.shape.hidden,
                    config.block_size,
                    batch.samples,
                    batch.labels,
                    batch.weights,
                    {.gamma = 4}};
    Floats expected_output, expected_weights;
    for (Kind& kind : kinds) {
      const Outcome found = kind.of(rows);
      kind.loss += found.loss;
      Tensor<Cpu, float, 2> doutput(cpu, {batch.tokens.size(), config.shape.hidden});
      cpu.upload(found.doutput.data(), doutput.view().data, doutput.size());
      fill(cpu, gradients.flat(), 0);
      model.backward(weights, batch, saved, doutput.view(), gradients);
      Floats flat(std::size_t(gradients.flat().size()));
      cpu.download(gradients.flat().data, flat.data(), index_t(flat.size()));
      if (&kind == kinds) expected_output = found.doutput, expected_weights = flat;
      kind.output.add(found.doutput, expected_output);
      kind.weights.add(flat, expected_weights);
    }
  }
  for (const Kind& kind : kinds)
    std::printf(
        "%-8s  loss %.6f  accuracy %.4f\n  gradient of the output: %s\n"
        "  gradient of the weights: %s\n",
        kind.name.c_str(), kind.loss.loss(), kind.loss.metrics.accuracy(),
        kind.output.text().c_str(), kind.weights.text().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: float8_head_effect TARGET DRAFT STORE [BATCHES]\n");
    return 2;
  }
  try {
    run(argv[1], argv[2], argv[3], argc > 4 ? std::atol(argv[4]) : 25);
    return 0;
  } catch (const Error& e) {
    std::fprintf(stderr, "float8_head_effect: %s\n", e.what());
    return 1;
  }
}
