#pragma once

#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "dflash/model/ulysses_attention.hpp"
#include "dflash/train/micro_step.hpp"
#include "dflash/train/sample_order.hpp"
#include "dflash/train/schedule.hpp"
#include "dflash/train/sharded_adamw.hpp"
#include "model/draft_fixture.hpp"

namespace parallel_training {

struct Layout {
  dflash::index_t replicas = 1;
  dflash::SequenceLayout sequence = {};
  dflash::index_t accumulation = 1, tensor_parallel = 1;
  dflash::index_t ranks() const { return replicas * sequence.ranks(); }
};

struct Run {
  std::vector<double> loss, norm, weights;
};

/// Called on every rank before each micro-step, with the rank and the number of the micro-step.
using Disturbance = std::function<void(dflash::index_t, dflash::index_t)>;

/// Five optimizer steps of 6 samples each, on any layout. Accumulation cuts the step's samples into
/// micro-steps.
template <class T, class C>
Run train_on(C world, const dflash::DraftConfig& config,
             const std::vector<dflash::MemorySample>& memory, Layout layout,
             dflash::LossOptions loss_options = {}, const Disturbance& disturb = {}) {
  using namespace dflash;
  using B = CpuBackend<T>;
  Run run;
  const DraftProblem<T> tables(config, memory, 4);
  B cpu;
  SequenceParallelGroup group(std::move(world), layout.sequence);
  TensorParallelGroup target_group(group.world(), layout.tensor_parallel);
  const Range words = target_group.share().of(config.vocabulary);
  const VocabularySlice<T> embedding{tables.embedding().rows(words), words.begin,
                                     config.vocabulary},
      head{tables.head().rows(words), words.begin, config.vocabulary};
  UlyssesAttention attention(cpu, group);
  DFlashBlock block(attention, config.shape);
  DraftModel model(block, config);
  auto weights = random_parameters(cpu, config, 3);
  Gradients<B> gradients(cpu, config);
  fill(cpu, gradients.flat(), std::numeric_limits<T>::quiet_NaN());
  ShardedAdamW optimizer(cpu, group.world(), weights.flat(), weights.slots(),
                         {.decay = 0.1, .max_grad_norm = 0.7},
                         gradient_buckets(config, group.world().size()));
  SampleOrder order(index_t(memory.size()), 1);
  const index_t batch_size = 6 / layout.accumulation;
  for (index_t step = 0; step < 5; ++step) {
    LossResult own(config.block_size);
    for (index_t micro = 0; micro < layout.accumulation; ++micro) {
      const Range positions = replica_positions(step, micro, batch_size, layout.accumulation,
                                                group.replicas(), group.replica());
      std::vector<Sample> samples;
      std::vector<Blocks> blocks;
      for (index_t p = positions.begin; p < positions.end; ++p) {
        samples.push_back(memory[std::size_t(order.sample(p))]);
        blocks.push_back(sample_blocks(samples.back(), {.count = 4, .size = config.block_size}, 9,
                                       std::uint64_t(order.epoch(p))));
      }
      if (disturb) disturb(group.world().rank(), step * layout.accumulation + micro);
      const auto batch = shard(cpu, group, samples, blocks, *config.mask_token);
      const auto is_final = [&](index_t bucket) {
        if (micro + 1 == layout.accumulation) optimizer.start(gradients.flat(), bucket);
      };
      own += micro_step(model, group, target_group, embedding, head, batch, loss_options, weights,
                        gradients, is_final, micro == 0 ? Result::written : Result::added);
    }
    const LossResult loss = sum_over_ranks(cpu, group.world(), own);
    const double norm =
        optimizer.step(weights.flat(), gradients.flat(),
                       Schedule{.peak = 1e-2, .warmup = 2, .total = 5}(step), loss.denominator);
    run.loss.push_back(loss.loss());
    run.norm.push_back(norm);
  }
  run.weights.assign(weights.flat().data, weights.flat().data + weights.flat().size());
  return run;
}

}  // namespace parallel_training
