// Training on a GPU in bfloat16, at the shapes of qwen3-8b's draft: H 4096, I 12288, five layers of
// 32/8 heads of 128, V 151936, five captured layers, blocks of 16. Features lie in host memory as
// in a store that has been read before, and batches are made ahead, as trainers do. Prints what a
// step of one sample takes, by the clock over all of them; the same by phase, each waited for
// (medians); what making a batch takes alone; the share of the device's bf16 peak that the products
// reach; and the memory in use.
//   training_step_cuda [--steps 10] [--layers 5] [--head-rows N] [--peak-tflops 989] [S anchors]...
// `--float8-head` makes the head's products in fp8. Without sizes: S 768, 3072, 32768 with 256 and
// 512 anchors. `--longest [S]` finds the longest S, from there on, that fits with 256 anchors and
// no batch made ahead; `--profile` lets a profiler see one more step of each size (ncu
// --profile-from-start off).

#include <cuda_profiler_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dflash/comm/communicator.hpp"
#include "dflash/comm/sequence_parallel_group.hpp"
#include "dflash/core/thread_pool.hpp"
#include "dflash/cuda.cuh"
#include "dflash/data/batch.hpp"
#include "dflash/data/blocks.hpp"
#include "dflash/data/prefetch.hpp"
#include "dflash/data/row_codec.hpp"
#include "dflash/data/store_format.hpp"
#include "dflash/model/draft_model.hpp"
#include "dflash/train/adamw.hpp"
#include "dflash/train/draft_loss.hpp"
#include "measure.cuh"

namespace {

using namespace dflash;
using namespace dflash_benchmark;
using T = bfloat16;
using B = CudaBackend<T>;

/// Rows of random numbers in bfloat16 with checksums, as a store has them; the first ones over and
/// over if fewer are kept than there are.
class HostFeatures final : public FeatureRows {
 public:
  HostFeatures(index_t rows, index_t kept, index_t width)
      : rows_(rows),
        kept_(kept),
        width_(width),
        numbers_(std::make_unique_for_overwrite<T[]>(std::size_t(kept * width))),
        checksums_(std::size_t(kept)) {
    ThreadPool(std::max(1, int(std::thread::hardware_concurrency())))
        .parallel_for(kept, [&](index_t row, int) {
          T* const at = numbers_.get() + row * width_;
          for (index_t i = 0; i < width_; ++i)
            at[i] = T(number(std::uint64_t(row * width_ + i), 7));
          checksums_[std::size_t(row)] = row_checksum(at, width_ * index_t(sizeof(T)));
        });
  }
  index_t rows() const override { return rows_; }
  index_t width() const override { return width_; }
  void read(Range range, float* out) const override { read_as(range, out); }
  void read_rounded(Range range, bfloat16* out) const override { read_as(range, out); }

 private:
  template <class U>
  void read_as(Range range, U* out) const {
    for (index_t i = range.begin; i < range.end; ++i, out += width_) {
      const T* const at = numbers_.get() + i % kept_ * width_;
      decode_row(reinterpret_cast<const std::byte*>(at), width_, DType::bf16, 0, out);
      if (row_checksum(at, width_ * index_t(sizeof(T))) != checksums_[std::size_t(i % kept_)])
        throw Error("a row does not match its checksum");
    }
  }

  index_t rows_, kept_, width_;
  std::unique_ptr<T[]> numbers_;
  std::vector<std::uint64_t> checksums_;
};

/// One sample, all of whose tokens are to be learnt.
struct MadeUpSample {
  std::vector<std::int32_t> tokens;
  std::vector<std::uint8_t> mask;
  std::shared_ptr<const FeatureRows> features;

  MadeUpSample(const DraftConfig& config, index_t rows, index_t kept)
      : tokens(std::size_t(rows), 11),
        mask(std::size_t(rows), 1),
        features(std::make_shared<HostFeatures>(rows, kept, config.feature_width())) {}
  index_t rows() const { return index_t(tokens.size()); }
  operator Sample() const {
    return {"made up", {tokens.data(), {rows()}}, {mask.data(), {rows()}}, features};
  }
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
  double wait = 0, forward = 0, head = 0, backward = 0, optimizer = 0;
  double total() const { return wait + forward + head + backward + optimizer; }
};

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Trainer {
 public:
  Trainer(index_t layers, const LossOptions& loss_options)
      : config_(qwen3_8b(layers)),
        loss_options_(loss_options),
        attention_(backend_),
        block_(attention_, config_.shape),
        model_(block_, config_),
        weights_(backend_, config_),
        gradients_(backend_, config_),
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
  void use_float8_head() { float8_head_.emplace(float8_head(backend_, head_.view())); }
  B& backend() { return backend_; }

  Batch<B> batch(const MadeUpSample& made_up, index_t anchors, index_t epoch) {
    const std::vector<Sample> samples{made_up};
    const std::vector<Blocks> blocks{sample_blocks(
        samples[0], {.count = anchors, .size = config_.block_size}, 1, std::uint64_t(epoch))};
    return shard(backend_, group_, samples, blocks, std::int32_t(*config_.mask_token));
  }

  /// Phases are waited for, and timed, if `times` is given.
  template <class Batches>
  void step(Batches& batches, Times* times = nullptr) {
    auto last = std::chrono::steady_clock::now();
    const auto lap = [&](double Times::*phase) {
      if (times == nullptr) return;
      backend_.synchronize();
      times->*phase = milliseconds_since(last);
      last = std::chrono::steady_clock::now();
    };
    const Batch<B> batch = batches.next();
    lap(&Times::wait);
    typename Model::Saved saved;
    model_.forward(weights_, embedding_.view(), batch, saved);
    lap(&Times::forward);
    Tensor<B, T, 2> doutput(backend_, {batch.tokens.size(), config_.shape.hidden});
    const auto loss_under = [&](const auto& head) {
      return draft_loss(backend_, head, saved.output.view(), batch.labels, batch.weights,
                        config_.block_size, batch.samples, loss_options_, doutput.view());
    };
    const LossResult loss =
        float8_head_ ? loss_under(*float8_head_) : loss_under(In<T, 2>(head_.view()));
    lap(&Times::head);
    model_.backward(weights_, batch, saved, doutput.view(), gradients_, IgnoreBuckets{},
                    Result::written);
    lap(&Times::backward);
    optimizer_->step(weights_.flat(), gradients_.flat(), 1e-4, loss.denominator);
    lap(&Times::optimizer);
  }

 private:
  using Model = DraftModel<DFlashBlock<LocalAttention<B>>>;

  B backend_;
  DraftConfig config_;
  LossOptions loss_options_;
  LocalAttention<B> attention_;
  DFlashBlock<LocalAttention<B>> block_;
  Model model_;
  SequenceParallelGroup<SingleProcess> group_{SingleProcess{}};
  Parameters<B> weights_;
  Gradients<B> gradients_;
  Tensor<B, T, 2> embedding_, head_;
  std::optional<Float8Head<T>> float8_head_;
  std::unique_ptr<AdamW<B>> optimizer_;
};

/// Of the device's memory, beyond what was in use when this was first called.
double gibibytes_in_use() {
  const auto used = [] {
    std::size_t free = 0, total = 0;
    cuda_expects(cudaMemGetInfo(&free, &total), "the device's memory");
    return double(total - free) / double(1 << 30);
  };
  static const double before = used();
  return used() - before;
}

/// Milliseconds and bytes of features of making one batch, nothing else going on.
std::pair<double, double> batch_alone(Trainer& trainer, const MadeUpSample& sample,
                                      index_t anchors) {
  std::vector<double> times;
  double bytes = 0;
  for (int i = 0; i < 7; ++i) {
    trainer.backend().synchronize();
    const auto start = std::chrono::steady_clock::now();
    const auto batch = trainer.batch(sample, anchors, i);
    trainer.backend().synchronize();
    if (i >= 2) times.push_back(milliseconds_since(start));
    bytes = double(batch.features.size()) * sizeof(T);
  }
  return {median(times), bytes};
}

void measure(Trainer& trainer, const MadeUpSample& sample, index_t anchors, int steps,
             double peak) {
  constexpr int untimed = 3;
  const auto [making, bytes] = batch_alone(trainer, sample, anchors);
  Prefetch batches(0, untimed + 2 * steps,
                   [&](index_t i) { return trainer.batch(sample, anchors, i); });
  for (int i = 0; i < untimed; ++i) trainer.step(batches);
  trainer.backend().synchronize();
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < steps; ++i) trainer.step(batches);
  trainer.backend().synchronize();
  const double ms = milliseconds_since(start) / steps;

  std::vector<Times> all(static_cast<std::size_t>(steps));
  for (Times& times : all) trainer.step(batches, &times);
  const auto phase = [&](double Times::*member) {
    std::vector<double> values;
    for (const Times& times : all) values.push_back(times.*member);
    return median(values);
  };
  std::vector<double> totals;
  for (const Times& times : all) totals.push_back(times.total());
  const double tflops =
      operations(trainer.config(), double(sample.rows()), double(anchors)) / ms * 1e-9;
  std::printf(
      "S %8td  N %4td  %9.2f ms a step  %6.1f TFLOP/s, %4.1f %% of peak  %6.1f GiB\n"
      "    by phase %.2f: waiting for the batch %.2f, forward %.2f, head %.2f, backward %.2f, "
      "optimizer %.2f\n"
      "    a batch alone %.2f ms, %.1f GB/s\n",
      sample.rows(), anchors, ms, tflops, 100 * tflops / peak, gibibytes_in_use(), median(totals),
      phase(&Times::wait), phase(&Times::forward), phase(&Times::head), phase(&Times::backward),
      phase(&Times::optimizer), making, bytes / making * 1e-6);
}

/// One step that a profiler sees.
void show(Trainer& trainer, const MadeUpSample& sample, index_t anchors) {
  Prefetch batches(0, 1, [&](index_t i) { return trainer.batch(sample, anchors, i); });
  cuda_expects(cudaProfilerStart(), "the profiler");
  trainer.step(batches);
  trainer.backend().synchronize();
  cuda_expects(cudaProfilerStop(), "the profiler");
}

/// A batch when it is asked for, none ahead.
struct OneByOne {
  Trainer& trainer;
  const MadeUpSample& sample;
  Batch<B> next() { return trainer.batch(sample, 256, 0); }
};

/// The largest S from `rows` on, in steps of a sixteenth, of which steps do not run out of memory.
void find_longest(index_t rows, index_t layers, const LossOptions& loss_options) {
  index_t longest = 0;
  for (;; rows += std::max<index_t>(rows / 16, 1)) {
    try {
      Trainer trainer(layers, loss_options);
      const MadeUpSample sample(trainer.config(), rows, 1024);
      OneByOne batches{trainer, sample};
      for (int i = 0; i < 2; ++i) trainer.step(batches);
      trainer.backend().synchronize();
      longest = rows;
      std::printf("S %td fits, %.1f GiB\n", rows, gibibytes_in_use());
    } catch (const std::exception& error) {
      std::printf("longest S: %td (%td: %s)\n", longest, rows, error.what());
      return;
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  int steps = 10;
  index_t layers = 5;
  double peak = 989;
  LossOptions loss_options;
  bool longest = false, profile = false, float8 = false;
  std::vector<index_t> numbers;
  for (int i = 1; i < count; ++i) {
    const std::string flag = arguments[i];
    const auto value = [&] { return i + 1 < count ? std::atof(arguments[++i]) : 0.0; };
    if (flag == "--steps")
      steps = std::max(1, int(value()));
    else if (flag == "--layers")
      layers = index_t(value());
    else if (flag == "--head-rows")
      loss_options.chunk_rows = index_t(value());
    else if (flag == "--peak-tflops")
      peak = value();
    else if (flag == "--longest")
      longest = true;
    else if (flag == "--float8-head")
      float8 = true;
    else if (flag == "--profile")
      profile = true;
    else
      numbers.push_back(std::atoll(flag.c_str()));
  }
  gibibytes_in_use();
  if (longest) {
    find_longest(numbers.empty() ? 32768 : numbers[0], layers, loss_options);
    return 0;
  }
  if (numbers.empty())
    for (const index_t rows : {768, 3072, 32768})
      for (const index_t anchors : {256, 512}) numbers.insert(numbers.end(), {rows, anchors});
  cudaDeviceProp properties;
  cuda_expects(cudaGetDeviceProperties(&properties, 0), "the device");
  std::printf("%s, bf16, %d steps of one sample\n", properties.name, steps);
  Trainer trainer(layers, loss_options);
  if (float8) trainer.use_float8_head();
  for (std::size_t i = 0; i + 1 < numbers.size(); i += 2) {
    const MadeUpSample sample(trainer.config(), numbers[i], std::min<index_t>(numbers[i], 1 << 16));
    measure(trainer, sample, numbers[i + 1], steps, peak);
    if (profile) show(trainer, sample, numbers[i + 1]);
  }
}
