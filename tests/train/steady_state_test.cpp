#include <doctest/doctest.h>

#include "../../benchmarks/training_loop.hpp"

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

TEST_CASE("the tenth step asks neither the heap nor the system for memory") {
  B backend(2);
  TrainingProblem problem(backend, small_shape());
  Trainer trainer(backend, problem);
  const auto blocks_of_system = [&] {
    return backend.system_allocations() + host_cache().system_allocations();
  };
  const Measured first = trainer.step();
  CHECK(first.allocations > 0);
  for (int i = 1; i < 9; ++i) trainer.step();
  const index_t before = blocks_of_system();
  const Measured tenth = trainer.step();
  CHECK(tenth.allocations == 0);
  CHECK(blocks_of_system() == before);
  CHECK(tenth.loss < first.loss);
}

TEST_CASE("losses, norms and weights do not depend on the number of threads") {
  for (const CpuPrecision precision :
       {CpuPrecision::fp32, CpuPrecision::bf16x3, CpuPrecision::bf16}) {
    INFO("precision ", int(precision));
    std::vector<Measured> expected;
    std::vector<float> weights;
    for (const int threads : {1, 2, 3, 5}) {
      B backend(threads, precision);
      TrainingProblem problem(backend, small_shape());
      Trainer trainer(backend, problem);
      std::vector<Measured> steps(3);
      for (Measured& step : steps) step = trainer.step();
      const auto flat = problem.weights.flat();
      if (threads == 1) {
        expected = steps;
        weights.assign(flat.data, flat.data + flat.size());
        continue;
      }
      for (std::size_t i = 0; i < steps.size(); ++i) {
        CHECK(steps[i].loss == expected[i].loss);
        CHECK(steps[i].gradient_norm == expected[i].gradient_norm);
      }
      CHECK(std::equal(weights.begin(), weights.end(), flat.data));
    }
  }
}

}  // namespace steady_state_test
