#pragma once

#include <sys/resource.h>

#include <algorithm>
#include <functional>
#include <span>
#include <vector>

#include "allocation_count.hpp"
#include "machine_peak.hpp"
#include "training_problem.hpp"

namespace dflash_benchmark {

/// Seconds of each phase of a step, and what it asked of the system.
struct Measured {
  double shard = 0, forward = 0, head = 0, backward = 0, optimizer = 0;
  double loss = 0, gradient_norm = 0;
  index_t allocations = 0, page_faults = 0;

  double step() const { return shard + forward + head + backward + optimizer; }
};

inline rusage usage() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  return u;
}

template <class Member>
double median(const std::vector<Measured>& all, Member member) {
  std::vector<double> values;
  for (const Measured& m : all) values.push_back(std::invoke(member, m));
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// The loop of train_offline, with a watch.
class Trainer {
 public:
  Trainer(B& backend, TrainingProblem& problem)
      : backend_(&backend),
        problem_(&problem),
        model_(dflash::DFlashBlock(dflash::UlyssesAttention(backend, group_),
                                   problem.shape.config.shape),
               problem.shape.config),
        gradients_(zero_gradients(backend, problem.shape.config)),
        optimizer_(backend, group_.world(), problem.weights.flat(), problem.weights.slots()) {
    for (const dflash::MemorySample& sample : problem.samples) samples_.push_back(sample);
  }

  Measured step() {
    const index_t allocations = allocation_count();
    const auto faults = usage().ru_minflt;
    const dflash::DraftConfig& config = problem_->shape.config;
    dflash::Parameters<B>& weights = problem_->weights;
    Measured m;
    dflash::Batch<B> batch;
    m.shard = seconds_of([&] {
      batch = shard(*backend_, group_, std::span<const dflash::Sample>(samples_),
                    std::span<const dflash::Blocks>(problem_->blocks), *config.mask_token);
    });
    dflash::LossResult loss;
    {
      typename Model::Saved saved;
      m.forward =
          seconds_of([&] { model_.forward(weights, problem_->target.embedding(), batch, saved); });
      dflash::Tensor<B, float, 2> doutput(*backend_, {batch.tokens.size(), config.shape.hidden});
      m.head = seconds_of([&] {
        loss = draft_loss(*backend_, problem_->target.lm_head(), saved.output.view(), batch.labels,
                          batch.weights, config.block_size, batch.samples, {}, doutput.view());
      });
      m.backward = seconds_of([&] {
        model_.backward(weights, batch, saved, doutput.view(), gradients_, dflash::IgnoreBuckets{},
                        dflash::Result::written);
      });
    }
    m.optimizer = seconds_of([&] {
      m.gradient_norm =
          optimizer_.step(weights.flat(), gradients_.flat(), /*rate=*/6e-4, loss.denominator);
    });
    m.loss = loss.loss();
    m.page_faults = usage().ru_minflt - faults;
    m.allocations = allocation_count() - allocations;
    return m;
  }

  TrainingOperations operations() const {
    return {problem_->shape, shard(*backend_, group_, std::span<const dflash::Sample>(samples_),
                                   std::span<const dflash::Blocks>(problem_->blocks),
                                   *problem_->shape.config.mask_token)};
  }

 private:
  using Attention = dflash::UlyssesAttention<B, dflash::SingleProcess>;
  using Model = dflash::DraftModel<dflash::DFlashBlock<Attention>>;

  B* backend_;
  TrainingProblem* problem_;
  dflash::SequenceParallelGroup<dflash::SingleProcess> group_;
  Model model_;
  dflash::Gradients<B> gradients_;
  dflash::ShardedAdamW<B, dflash::SingleProcess> optimizer_;
  std::vector<dflash::Sample> samples_;
};

}  // namespace dflash_benchmark
