#include <doctest/doctest.h>

#include "../../benchmarks/allocation_count.hpp"
#include "../../benchmarks/training_problem.hpp"

namespace steady_state_test {

using namespace dflash;
using namespace dflash_benchmark;

/// A draft small enough for any machine, with enough work to wake all threads.
TrainingShape small_shape() {
  TrainingShape shape = shape_named("tiny");
  shape.config.vocabulary = 300;
  shape.config.mask_token = 299;
  shape.tokens = 96;
  shape.anchors = 16;
  shape.batch = 2;
  return shape;
}

struct Step {
  double loss = 0, norm = 0;
  index_t heap = 0;    // calls of operator new in the step
  index_t system = 0;  // blocks that came from the system so far
};

/// A few steps of a trainer on made-up samples; returns each step, and leaves the weights.
std::vector<Step> train(B& backend, TrainingProblem& problem, int steps) {
  SequenceParallelGroup<SingleProcess> group;
  UlyssesAttention attention(backend, group);
  DFlashBlock block(attention, problem.shape.config.shape);
  DraftModel model(block, problem.shape.config);
  auto gradients = zero_gradients(backend, problem.shape.config);
  ShardedAdamW optimizer(backend, group.world(), problem.weights.flat(), problem.weights.slots());
  std::vector<Sample> samples(problem.samples.begin(), problem.samples.end());
  std::vector<Step> done(static_cast<std::size_t>(steps));
  for (Step& step : done) {
    const index_t before = allocation_count();
    fill(backend, gradients.flat(), 0);
    LossResult loss;
    {
      const auto batch =
          shard(backend, group, std::span<const Sample>(samples),
                std::span<const Blocks>(problem.blocks), *problem.shape.config.mask_token);
      typename decltype(model)::Saved saved;
      model.forward(problem.weights, problem.embedding(), batch, saved);
      Tensor<B, float, 2> doutput(backend, {batch.tokens.size(), problem.head().shape[1]});
      loss = draft_loss(backend, problem.head(), saved.output.view(), batch.labels, batch.weights,
                        batch.block_size, batch.samples, {}, doutput.view());
      model.backward(problem.weights, batch, saved, doutput.view(), gradients);
    }
    step.norm = optimizer.step(problem.weights.flat(), gradients.flat(), 1e-3, loss.denominator);
    step.loss = loss.loss();
    step.heap = allocation_count() - before;
    step.system = backend.system_allocations() + host_cache().system_allocations();
  }
  return done;
}

TEST_CASE("the tenth step asks neither the heap nor the system for memory") {
  B backend(2);
  TrainingProblem problem(backend, small_shape());
  const auto steps = train(backend, problem, 10);
  CHECK(steps[0].heap > 0);
  CHECK(steps[9].heap == 0);
  CHECK(steps[9].system == steps[8].system);
  CHECK(steps[9].loss < steps[0].loss);
}

TEST_CASE("losses, norms and weights do not depend on the number of threads") {
  std::vector<Step> expected;
  std::vector<float> weights;
  for (const int threads : {1, 2, 3, 5}) {
    B backend(threads);
    TrainingProblem problem(backend, small_shape());
    const auto steps = train(backend, problem, 3);
    const auto flat = problem.weights.flat();
    if (threads == 1) {
      expected = steps;
      weights.assign(flat.data, flat.data + flat.size());
      continue;
    }
    for (std::size_t i = 0; i < steps.size(); ++i) {
      CHECK(steps[i].loss == expected[i].loss);
      CHECK(steps[i].norm == expected[i].norm);
    }
    CHECK(std::equal(weights.begin(), weights.end(), flat.data));
  }
}

}  // namespace steady_state_test
