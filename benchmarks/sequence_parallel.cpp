// One training step on P ranks, which are threads: its time, the memory of the rank that needs most
// and the bytes it sends, over the length S of the context, beside what TrainingPlan foretells.
//   sequence_parallel_benchmark [longest S, default 65536]
// Times mean something for as many ranks as there are cores.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <dflash/dflash.hpp>
#include <mutex>

using namespace dflash;
using B = CpuBackend<float>;

namespace {

constexpr index_t vocabulary = 2048, anchors = 64;

DraftConfig draft_config() {
  return DraftConfig::from_json(
      {{"hidden_size", 256},
       {"intermediate_size", 512},
       {"num_hidden_layers", 2},
       {"num_attention_heads", 8},
       {"num_key_value_heads", 4},
       {"head_dim", 32},
       {"vocab_size", vocabulary},
       {"block_size", 16},
       {"num_target_layers", 8},
       {"dflash_config", {{"target_layer_ids", {1, 3, 5}}, {"mask_token_id", vocabulary - 1}}}},
      "sequence_parallel");
}

/// A sample of S tokens, all supervised, with anchors spread evenly up to the last that fits.
struct Problem {
  DraftConfig config = draft_config();
  MemorySample memory;
  std::vector<Sample> samples;
  std::vector<Blocks> blocks;

  explicit Problem(index_t length) {
    memory.text.id = "one";
    for (index_t t = 0; t < length; ++t)
      memory.text.tokens.push_back(std::int32_t(t % (vocabulary - 1)));
    memory.text.loss_mask.assign(std::size_t(length), 1);
    std::vector<float> features(std::size_t(length * config.feature_width()));
    std::uint32_t bits = 1;
    for (float& x : features)
      x = float(std::int32_t(bits = bits * 1664525u + 1013904223u)) * 4e-10f;
    memory.features = std::make_shared<MemoryFeatures>(std::move(features), config.feature_width());
    samples.push_back(memory);
    std::vector<index_t> at;
    for (index_t n = 1; n <= anchors; ++n) at.push_back((length - config.block_size) * n / anchors);
    blocks.push_back(blocks_at(memory.text.tokens, memory.text.loss_mask, at, config.block_size));
  }

  TrainingPlan plan(SequenceLayout layout) const {
    return {.config = config,
            .layout = layout,
            .sample_tokens = blocks[0].context_rows(),
            .sample_blocks = anchors,
            .tied_head = true};
  }
};

struct Measured {
  double seconds = 0;          // of a step
  index_t peak = 0, held = 0;  // bytes, of the rank with most
  index_t sent = 0;            // by the first rank
  std::vector<index_t>
      kinds;  // bytes, of the first rank: weights, gradients, optimizer, batch, saved
};

Measured measure(const Problem& p, SequenceLayout layout, int steps) {
  Measured result;
  std::mutex mutex;
  ThreadCommunicator::run(int(layout.ranks()), [&](ThreadCommunicator world) {
    B backend(1);
    std::vector<index_t> kinds;
    index_t before = 0;
    const auto take = [&] {
      kinds.push_back(backend.memory().bytes().used - before);
      before = backend.memory().bytes().used;
    };
    SequenceParallelGroup group(std::move(world), layout);
    TensorParallelGroup target_group(group.world(), 1);
    UlyssesAttention attention(backend, group);
    DFlashBlock block(attention, p.config.shape);
    DraftModel model(block, p.config);
    Tensor<B, float, 2> table(backend, {vocabulary, p.config.shape.hidden});
    fill(backend, table.view(), 0.01f);
    const VocabularySlice<float> ends{table.view(), 0, vocabulary};
    before = backend.memory().bytes().used;
    auto weights = random_parameters(backend, p.config, 1);
    take();
    auto gradients = zero_gradients(backend, p.config);
    take();
    ShardedAdamW optimizer(backend, group.world(), weights.flat(), weights.slots(), {},
                           gradient_buckets(p.config, layout.ranks()));
    take();
    {
      const auto batch = shard(backend, group, p.samples, p.blocks, *p.config.mask_token);
      take();
      typename decltype(model)::Saved saved;
      model.forward(weights, table.view(), batch, saved);
      take();
    }
    backend.memory().release();
    backend.memory().forget_peak();
    const auto step = [&](index_t i) {
      const auto batch = shard(backend, group, p.samples, p.blocks, *p.config.mask_token);
      const LossResult own = micro_step(
          model, group, target_group, ends, ends, batch, {}, weights, gradients,
          [&](index_t bucket) { optimizer.start(gradients.flat(), bucket); }, Result::written);
      const LossResult loss = sum_over_ranks(backend, group.world(), own);
      optimizer.step(weights.flat(), gradients.flat(), 1e-4 * double(i + 1), loss.denominator);
    };
    step(0);
    group.world().barrier();
    const index_t sent = group.sequence().traffic().total().bytes;
    const auto start = std::chrono::steady_clock::now();
    for (index_t i = 0; i < steps; ++i) step(i + 1);
    group.world().barrier();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const std::lock_guard lock(mutex);
    const auto bytes = backend.memory().bytes();
    result.peak = std::max(result.peak, bytes.peak);
    result.held = std::max(result.held, bytes.held);
    if (group.rank() != 0) return;
    result.seconds = seconds.count() / steps;
    result.sent = (group.sequence().traffic().total().bytes - sent) / steps;
    result.kinds = kinds;
  });
  return result;
}

double mib(index_t bytes) { return double(bytes) / double(1 << 20); }

}  // namespace

int main(int argc, char** argv) {
  const index_t longest = argc > 1 ? std::atol(argv[1]) : 65536;
  std::printf("%8s %8s %9s %10s %10s %10s %9s %10s %10s\n", "S", "ranks", "step (s)", "peak MiB",
              "plan MiB", "peak/plan", "held MiB", "sent MiB", "plan MiB");
  for (index_t length = 1024; length <= longest; length *= 4) {
    const Problem p(length);
    for (const SequenceLayout& layout :
         {SequenceLayout{1, 1}, {2, 1}, {4, 1}, {8, 1}, {4, 2}, {2, 4}}) {
      const Measured m = measure(p, layout, 2);
      const TrainingPlan plan = p.plan(layout);
      index_t planned = 0;
      for (index_t rank = 0; rank < layout.ranks(); ++rank)
        planned = std::max(planned, plan.memory_bytes(rank));
      std::printf("%8td %5tdx%-2td %9.3f %10.1f %10.1f %10.2f %9.1f %10.2f %10.2f\n", length,
                  layout.ulysses, layout.ring, m.seconds, mib(m.peak), mib(planned),
                  double(m.peak) / double(planned), mib(m.held), mib(m.sent),
                  mib(plan.sequence_traffic(0).total().bytes));
      if (length != 16384) continue;
      const auto kinds = plan.memory(0);
      for (std::size_t i = 0; i < m.kinds.size(); ++i)
        std::printf("%18s %-20s %10.2f %10.2f %10.2f\n", "", kinds[i].name.c_str(), mib(m.kinds[i]),
                    mib(kinds[i].bytes), double(m.kinds[i]) / double(kinds[i].bytes));
    }
  }
}
