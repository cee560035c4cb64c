#include "dflash/train/vocabulary_parallel_loss.hpp"

#include "dflash/comm/thread_communicator.hpp"
#include "train/vocabulary_parallel_suite.hpp"

namespace vocabulary_parallel_loss_test {

using namespace dflash;
using vocabulary_parallel_suite::check_loss;
using vocabulary_parallel_suite::Problem;

/// Both precisions, with chunks of all sizes.
void check_degrees(Problem problem, LossOptions options, std::initializer_list<int> degrees) {
  for (const int degree : degrees)
    for (const index_t rows : {1, 5, 16, 1024}) {
      CAPTURE(degree);
      CAPTURE(rows);
      options.chunk_rows = rows;
      ThreadCommunicator::run(degree, [&](ThreadCommunicator world) {
        check_loss<double>(world, degree, problem, options);
        check_loss<float>(world, degree, problem, options);
      });
    }
}

TEST_CASE("The loss under a split head is that under the whole head") {
  Problem problem;
  problem.blocks = {5, 3, 0, 9};
  LossOptions options;
  SUBCASE("plain, with decay") { options.gamma = 3; }
  SUBCASE("D-PACE") { options.type = LossType::dpace; }
  SUBCASE("D-PACE, cumulative") { options.type = LossType::dpace_cumulative; }
  SUBCASE("D-PACE, continuation") { options.type = LossType::dpace_continuation; }
  SUBCASE("a vocabulary of 53") { problem.vocabulary = 53; }
  SUBCASE("fewer words than ranks") { problem.vocabulary = 3; }
  SUBCASE("many words") {
    problem.vocabulary = 4111;
    problem.blocks = {2, 1, 1, 3};
  }
  SUBCASE("logits far apart") { problem.scale = 60; }
  check_degrees(problem, options, {1, 2, 3, 4});
}

TEST_CASE("Of equal logits the first counts as the largest, wherever it lies") {
  Problem problem;
  problem.whole_numbers = true;
  problem.vocabulary = 13;
  problem.width = 2;  // nine different rows: every logit ties with others
  problem.blocks = {30, 30, 30, 30};
  check_degrees(problem, {}, {2, 3, 4});
}

TEST_CASE("Ranks may bring no block, and a group no supervised slot") {
  Problem problem;
  SUBCASE("one rank brings all") { problem.blocks = {0, 0, 6, 0}; }
  SUBCASE("no block anywhere") { problem.blocks = {0, 0, 0, 0}; }
  SUBCASE("nothing to learn") {
    problem.blocks = {3, 1, 2, 0};
    problem.supervised = 0;
  }
  check_degrees(problem, {}, {2, 3, 4});
  check_degrees(problem, {.type = LossType::dpace}, {2, 3, 4});
}

TEST_CASE("Groups of a world have a head of their own each") {
  Problem problem;
  problem.blocks = {4, 2};
  ThreadCommunicator::run(
      4, [&](ThreadCommunicator world) { check_loss<double>(world, 2, problem, {.gamma = 4}); });
}

TEST_CASE("One process may hold the whole head") {
  Problem problem;
  problem.blocks = {4};
  SingleProcess world;
  check_loss<float>(world, 1, problem, {});
}

TEST_CASE("A label outside the vocabulary, or a slice of another rank, ends the job") {
  const auto run = [](std::int32_t label, index_t first) {
    ThreadCommunicator::run(2, [&](ThreadCommunicator world) {
      CpuBackend<float> cpu;
      TensorParallelGroup group(std::move(world), 2);
      const std::vector<float> head(2 * 3, 0.5f), hidden(2 * 3, 0.5f);
      std::vector<float> gradient(2 * 3);
      const bool last = group.rank() == 1;
      const VocabularySlice<float> slice{{head.data(), {2, 3}}, last ? first : 0, 4};
      vocabulary_parallel_draft_loss(cpu, group, slice, {hidden.data(), {2, 3}},
                                     std::vector<std::int32_t>{0, last ? label : 1},
                                     std::vector<float>{0, 1}, 2, 1, {}, {gradient.data(), {2, 3}});
    });
  };
  CHECK_NOTHROW(run(3, 2));
  CHECK_THROWS_WITH_AS(
      run(4, 2),
      doctest::Contains("label 4 of block 0, slot 1 is outside the head's vocabulary of 4"), Error);
  CHECK_THROWS_WITH_AS(run(3, 1), doctest::Contains("not this rank's"), Error);
}

}  // namespace vocabulary_parallel_loss_test
