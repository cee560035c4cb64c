#include <doctest/doctest.h>

#include "main.hpp"
#include "model/tensor_parallel_suite.hpp"
#include "train/vocabulary_parallel_suite.hpp"

using namespace dflash;

namespace {

/// Calls check(world, degree) for every way to cut the world into groups.
template <class Check>
void for_each_degree(Check&& check) {
  MpiCommunicator world = mpi().world();
  for (index_t degree = 1; degree <= world.size(); ++degree) {
    CAPTURE(degree);
    if (world.size() % degree == 0) check(world, degree);
  }
}

}  // namespace

TEST_CASE("linear layers cut over processes are whole layers") {
  for_each_degree([](MpiCommunicator& world, index_t degree) {
    tensor_parallel_suite::check_linear<double>(world, degree, 7, 11, 13);
    tensor_parallel_suite::check_linear<float>(world, degree, 7, 11, 13);
  });
}

TEST_CASE("a target over processes is the target of one") {
  for (const auto& [heads, kv_heads] : {std::pair{6, 2}, std::pair{14, 2}}) {
    auto config = fixture::small_config("qwen3");
    config["num_attention_heads"] = heads;
    config["num_key_value_heads"] = kv_heads;
    const fixture::RandomTarget files(config);
    for_each_degree([&](MpiCommunicator& world, index_t degree) {
      tensor_parallel_suite::check_target<double>(world, degree, files.folder);
      tensor_parallel_suite::check_target<float>(world, degree, files.folder);
      tensor_parallel_suite::check_speculation<double>(world, degree, files.folder);
    });
  }
}

TEST_CASE("processes share an embedding") {
  for_each_degree([](MpiCommunicator& world, index_t degree) {
    tensor_parallel_suite::check_embedding<float>(world, degree, 50, {11, 0, 4, 90, 1, 30});
  });
}

TEST_CASE("the loss under a head split over processes is that under the whole head") {
  vocabulary_parallel_suite::Problem problem;
  problem.blocks = {5, 3, 0, 9, 2, 1};
  for (const LossType type : {LossType::plain, LossType::dpace})
    for_each_degree([&](MpiCommunicator& world, index_t degree) {
      const LossOptions options{.type = type, .chunk_rows = 8};
      vocabulary_parallel_suite::check_loss<double>(world, degree, problem, options);
      vocabulary_parallel_suite::check_loss<float>(world, degree, problem, options);
    });
}
