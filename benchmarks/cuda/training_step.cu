// A whole training step on a GPU in bfloat16, at the shapes of qwen3-8b's draft: H 4096, I 12288,
// five layers of 32/8 heads of 128, V 151936, five captured layers, blocks of 16. Prints
// milliseconds per sample (median), by phase, the share of the device's bf16 peak that the products
// reach, and the peak of memory.
//   training_step_cuda [--steps 10] [--layers 5] [--peak-tflops 989] [S anchors]...
// Without sizes: S 768, 3072, 32768 with 256 and 512 anchors. `--longest` finds the longest S that
// fits with 256 anchors; `--profile` lets a profiler see one more step of each size (ncu
// --profile-from-start off).

#include <cuda_profiler_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dflash/comm/communicator.hpp"
#include "dflash/comm/sequence_parallel_group.hpp"
#include "dflash/cuda.cuh"
#include "dflash/data/batch.hpp"
#include "dflash/data/blocks.hpp"
#include "dflash/model/draft_model.hpp"
#include "dflash/train/adamw.hpp"
#include "dflash/train/draft_loss.hpp"
#include "measure.cuh"

namespace {

using namespace dflash;
using namespace dflash_benchmark;
using T = bfloat16;
using B = CudaBackend<T>;

/// Rows that all hold the same random numbers.
class MadeUpFeatures final : public FeatureRows {
 public:
  MadeUpFeatures(index_t rows, index_t width) : rows_(rows), row_(std::size_t(width)) {
    for (std::size_t i = 0; i < row_.size(); ++i) row_[i] = number(i, 7);
  }
  index_t rows() const override { return rows_; }
  index_t width() const override { return index_t(row_.size()); }
  void read(Range range, float* out) const override {
    for (index_t i = range.begin; i < range.end; ++i)
      out = std::copy(row_.begin(), row_.end(), out);
  }

 private:
  index_t rows_;
  std::vector<float> row_;
};

DraftConfig qwen3_8b(index_t layers) {
  DraftConfig c;
  c.shape = {.hidden = 4096, .intermediate = 12288, .heads = 32, .kv_heads = 8, .head_dim = 128};
  c.vocabulary = 151936, c.layers = layers, c.block_size = 16, c.target_layers = 36;
  c.target_layer_ids = {1, 9, 17, 25, 33};
  c.mask_token = 151669;
  c.sliding.assign(std::size_t(layers), false);
  return c;
}

/// Operations of the products of one step, forward and backward; attention by the pairs seen.
double operations(const DraftConfig& c, double rows, double blocks) {
  const auto& s = c.shape;
  const double n = blocks * double(c.block_size), h = double(s.hidden),
               q = double(s.heads * s.head_dim), kv = double(s.kv_heads * s.head_dim);
  const double per_block_row = h * (q + 2 * kv) + q * h + 3 * h * double(s.intermediate);
  const double context = rows * (h * double(c.feature_width()) * 2 / 3 +  // features: no dx
                                 double(c.layers) * h * 2 * kv);
  const double pairs = n * (rows / 2 + double(c.block_size)) * q;
  const double head = n * h * double(c.vocabulary);
  return 6 * (double(c.layers) * n * per_block_row + context) + double(c.layers) * pairs * 14 +
         4 * head;
}

struct Times {
  double shard = 0, forward = 0, head = 0, backward = 0, optimizer = 0;
  double total() const { return shard + forward + head + backward + optimizer; }
};

class Trainer {
 public:
  explicit Trainer(index_t layers)
      : config_(qwen3_8b(layers)),
        attention_(backend_),
        block_(attention_, config_.shape),
        model_(block_, config_),
        weights_(backend_, config_),
        gradients_(zero_gradients(backend_, config_)),
        embedding_(backend_, {config_.vocabulary, config_.shape.hidden}),
        head_(backend_, {config_.vocabulary, config_.shape.hidden}) {
    for (std::size_t i = 0; i < weights_.slots().size(); ++i) {
      const ParameterSlot& slot = weights_.slots()[i];
      const View<T, 1> view = weights_.flat().rows({slot.offset, slot.offset + slot.size});
      if (slot.shape.size() == 2)
        randomize(backend_, view.data, view.size(), 0.035f, i);
      else
        fill(backend_, view, T(1.0f));
    }
    randomize(backend_, embedding_.view().data, embedding_.size(), 0.035f, 1001);
    randomize(backend_, head_.view().data, head_.size(), 0.035f, 1002);
    optimizer_ = std::make_unique<AdamW<B>>(backend_, weights_.flat(), weights_.slots());
  }

  const DraftConfig& config() const { return config_; }

  Times step(index_t rows, index_t anchors) {
    const std::vector<std::int32_t> tokens(std::size_t(rows), 11);
    const std::vector<std::uint8_t> mask(std::size_t(rows), 1);
    const std::vector<Sample> samples{
        {"made up",
         {tokens.data(), {rows}},
         {mask.data(), {rows}},
         std::make_shared<MadeUpFeatures>(rows, config_.feature_width())}};
    const std::vector<Blocks> blocks{
        sample_blocks(samples[0], {.count = anchors, .size = config_.block_size}, 1, 0)};
    Times times;
    lap();
    const auto batch = shard(backend_, group_, samples, blocks, std::int32_t(*config_.mask_token));
    times.shard = lap();
    typename Model::Saved saved;
    model_.forward(weights_, embedding_.view(), batch, saved);
    times.forward = lap();
    Tensor<B, T, 2> doutput(backend_, {batch.tokens.size(), config_.shape.hidden});
    const LossResult loss =
        draft_loss(backend_, head_.view(), saved.output.view(), batch.labels, batch.weights,
                   config_.block_size, batch.samples, {}, doutput.view());
    times.head = lap();
    fill(backend_, gradients_.flat(), 0);
    model_.backward(weights_, batch, saved, doutput.view(), gradients_);
    times.backward = lap();
    optimizer_->step(weights_.flat(), gradients_.flat(), 1e-4, loss.denominator);
    times.optimizer = lap();
    return times;
  }

 private:
  using Model = DraftModel<DFlashBlock<LocalAttention<B>>>;

  /// Milliseconds since the last call.
  double lap() {
    backend_.synchronize();
    const auto now = std::chrono::steady_clock::now();
    const double ms = std::chrono::duration<double, std::milli>(now - last_).count();
    last_ = now;
    return ms;
  }

  B backend_;
  DraftConfig config_;
  LocalAttention<B> attention_;
  DFlashBlock<LocalAttention<B>> block_;
  Model model_;
  SequenceParallelGroup<SingleProcess> group_{SingleProcess{}};
  Parameters<B> weights_;
  Gradients<B> gradients_;
  Tensor<B, T, 2> embedding_, head_;
  std::unique_ptr<AdamW<B>> optimizer_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

double gibibytes_in_use() {
  std::size_t free = 0, total = 0;
  cuda_expects(cudaMemGetInfo(&free, &total), "the device's memory");
  return double(total - free) / double(1 << 30);
}

void measure(Trainer& trainer, index_t rows, index_t anchors, int steps, double peak) {
  std::vector<Times> all;
  for (int i = 0; i < steps + 3; ++i) {
    const Times times = trainer.step(rows, anchors);
    if (i >= 3) all.push_back(times);
  }
  std::sort(all.begin(), all.end(),
            [](const Times& a, const Times& b) { return a.total() < b.total(); });
  const Times& t = all[all.size() / 2];
  const double tflops =
      operations(trainer.config(), double(rows), double(anchors)) / t.total() * 1e-9;
  std::printf(
      "S %8td  N %4td  %9.2f ms  (shard %.2f, forward %.2f, head %.2f, backward %.2f, optimizer "
      "%.2f)  %6.1f TFLOP/s, %4.1f %% of peak  %6.1f GiB\n",
      rows, anchors, t.total(), t.shard, t.forward, t.head, t.backward, t.optimizer, tflops,
      100 * tflops / peak, gibibytes_in_use());
}

/// The largest S, in steps of an eighth, of which a step does not run out of memory.
void find_longest(index_t layers) {
  index_t longest = 0;
  for (index_t rows = 32768;; rows += std::max<index_t>(rows / 8, 1)) {
    try {
      Trainer trainer(layers);
      trainer.step(rows, 256);
    } catch (const std::exception& error) {
      std::printf("longest S: %td (%td: %s)\n", longest, rows, error.what());
      return;
    }
    longest = rows;
    std::printf("S %td fits, %.1f GiB\n", rows, gibibytes_in_use());
  }
}

}  // namespace

int main(int count, char** arguments) {
  int steps = 10;
  index_t layers = 5;
  double peak = 989;
  bool longest = false, profile = false;
  std::vector<index_t> numbers;
  for (int i = 1; i < count; ++i) {
    const std::string flag = arguments[i];
    const auto value = [&] { return i + 1 < count ? std::atof(arguments[++i]) : 0.0; };
    if (flag == "--steps")
      steps = int(value());
    else if (flag == "--layers")
      layers = index_t(value());
    else if (flag == "--peak-tflops")
      peak = value();
    else if (flag == "--longest")
      longest = true;
    else if (flag == "--profile")
      profile = true;
    else
      numbers.push_back(std::atoll(flag.c_str()));
  }
  if (longest) {
    find_longest(layers);
    return 0;
  }
  if (numbers.empty())
    for (const index_t rows : {768, 3072, 32768})
      for (const index_t anchors : {256, 512}) numbers.insert(numbers.end(), {rows, anchors});
  cudaDeviceProp properties;
  cuda_expects(cudaGetDeviceProperties(&properties, 0), "the device");
  std::printf("%s, bf16, median of %d steps of one sample\n", properties.name, steps);
  Trainer trainer(layers);
  for (std::size_t i = 0; i + 1 < numbers.size(); i += 2) {
    measure(trainer, numbers[i], numbers[i + 1], steps, peak);
    if (!profile) continue;
    cuda_expects(cudaProfilerStart(), "the profiler");
    trainer.step(numbers[i], numbers[i + 1]);
    cuda_expects(cudaProfilerStop(), "the profiler");
  }
}
