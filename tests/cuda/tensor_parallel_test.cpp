// A target and the loss's head over ranks that hold a GPU each: on the emulated device, through the
// emulated NCCL.

#include <doctest/doctest.h>

#include <chrono>
#include <vector>

#include "cuda/support.hpp"
#include "dflash/comm/thread_communicator.hpp"
#include "dflash/cuda/sum_of_parts.cuh"
#include "dflash/nccl.hpp"
#include "dflash/train/vocabulary_parallel_loss.hpp"
#include "model/tensor_parallel_suite.hpp"
#include "train/vocabulary_parallel_suite.hpp"

namespace tensor_parallel_test {

using namespace dflash;
using namespace dflash_test;
using namespace std::chrono_literals;
using Nccl = NcclCommunicator<ThreadCommunicator>;
using vocabulary_parallel_suite::Problem;

template <class Body>
void on_ranks(int ranks, Body body) {
  ThreadCommunicator::run(ranks,
                          [&](ThreadCommunicator host) {
                            Nccl world(std::move(host));
                            body(world);
                          },
                          {.time_out = 60s});
}

/// A head of equal tiles, a rank's words each: whole or split, its float8 numbers are the same.
constexpr index_t words_of_a_rank = 48;

/// The loss of this rank's rows and its gradient.
struct Outcome {
  LossResult loss;
  std::vector<float> gradient;
};

/// Under the whole head: loss(head, rows, doutput) on this rank alone.
template <class T>
class LossOnRanks {
 public:
  LossOnRanks(Nccl& world)
      : group_(world, world.size()),
        problem_{.width = 24, .vocabulary = words_of_a_rank * world.size(), .blocks = {5, 3, 0}},
        rows_(problem_.rows(world.rank())),
        head_(backend_, problem_.head()),
        hidden_(backend_, rows_.hidden) {}

  Outcome whole(bool float8) {
    const View<const T, 2> head = head_.matrix(problem_.vocabulary, problem_.width);
    if (float8)
      return outcome([&](auto... rest) {
        return draft_loss(backend_, Float8Head<T>(backend_, head, words_of_a_rank), rest...);
      });
    return outcome([&](auto... rest) { return draft_loss(backend_, head, rest...); });
  }
  Outcome split(bool float8) {
    const Range own = group_.share().of(problem_.vocabulary);
    // Rows of other ranks are nowhere near.
    const auto all = problem_.head();
    OnDevice<T> here(backend_, std::vector<double>(all.begin() + own.begin * problem_.width,
                                                   all.begin() + own.end * problem_.width));
    const VocabularySlice<T> slice{here.matrix(own.size(), problem_.width), own.begin,
                                   problem_.vocabulary};
    if (float8)
      return outcome([&](auto... rest) {
        const PreparedSlice<Float8Head<T>> prepared{float8_head<T>(backend_, slice.rows),
                                                    slice.first, slice.total};
        return vocabulary_parallel_draft_loss(backend_, group_, prepared, rest...);
      });
    return outcome([&](auto... rest) {
      return vocabulary_parallel_draft_loss(backend_, group_, slice, rest...);
    });
  }

 private:
  template <class Loss>
  Outcome outcome(Loss loss) {
    const index_t slots = rows_.slots();
    OnDevice<T> gradient(backend_, std::vector<float>(rows_.hidden.size(), 7));
    LossOptions options;
    options.gamma = 4;
    options.chunk_rows = 8;  // of several rounds
    const LossResult result =
        loss(View<const T, 2>(hidden_.matrix(slots, problem_.width)), rows_.labels, rows_.weights,
             problem_.block_size, index_t(2), options, gradient.matrix(slots, problem_.width));
    return {result, gradient.host(backend_)};
  }

  CudaBackend<T> backend_;
  TensorParallelGroup<Nccl> group_;
  Problem problem_;
  Problem::Rows rows_;
  OnDevice<T> head_, hidden_;
};

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    ab += double(a[i]) * double(b[i]), aa += double(a[i]) * double(a[i]),
        bb += double(b[i]) * double(b[i]);
  return ab / std::sqrt(aa * bb);
}

TEST_CASE("a target over ranks is the target of one") {
  auto config = fixture::small_config("qwen3");
  const fixture::RandomTarget files(config);
  for (const int ranks : {1, 2, 3})
    on_ranks(ranks, [&](Nccl& world) {
      CudaBackend<float> backend;
      tensor_parallel_suite::check_target_on(backend, world, ranks, files.folder);
    });
}

TEST_CASE_TEMPLATE("the loss under a split head is that under the whole head, in float8 too", T,
                   float, bfloat16) {
  for (const int ranks : {1, 2, 3})
    on_ranks(ranks, [&](Nccl& world) {
      LossOnRanks<T> loss(world);
      for (const bool float8 : {false, true}) {
        CAPTURE(float8);
        const Outcome expected = loss.whole(float8), actual = loss.split(float8);
        CHECK(actual.loss.numerator == doctest::Approx(expected.loss.numerator).epsilon(1e-5));
        CHECK(actual.loss.denominator == expected.loss.denominator);
        CHECK(actual.loss.metrics.correct == expected.loss.metrics.correct);
        CHECK(error(actual.gradient, expected.gradient) <= 2 * tolerance<T>);
        if (ranks == 1) CHECK(actual.gradient == expected.gradient);
      }
      const Outcome plain = loss.split(false), float8 = loss.split(true);
      if (plain.gradient.empty()) return;
      CHECK(float8.gradient != plain.gradient);
      CHECK(float8.loss.numerator == doctest::Approx(plain.loss.numerator).epsilon(2e-2));
      CHECK(cosine(float8.gradient, plain.gradient) > 0.998);
    });
}

}  // namespace tensor_parallel_test
