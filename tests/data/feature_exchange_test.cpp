#include "dflash/data/feature_exchange.hpp"

#include <doctest/doctest.h>

#include <mutex>

#include "dflash/comm/thread_communicator.hpp"
#include "dflash/cpu.hpp"
#include "dflash/data/memory_sample.hpp"

namespace feature_exchange_test {

using namespace dflash;
using B = CpuBackend<float>;

constexpr index_t width = 3;

float value(index_t sample, index_t row, index_t column) {
  return float(sample * 1000000 + row * 10 + column);
}

/// Three replicas at most: samples of these lengths, all supervised, with anchors near their ends.
struct Problem {
  std::vector<std::vector<MemorySample>> samples;
  std::vector<std::vector<Blocks>> blocks;

  explicit Problem(const std::vector<std::vector<index_t>>& lengths) {
    index_t number = 0;
    for (const auto& replica : lengths) {
      samples.emplace_back();
      blocks.emplace_back();
      for (const index_t length : replica) {
        MemorySample sample{{std::to_string(number), {}, {}}, nullptr};
        sample.text.tokens.assign(std::size_t(length), 1);
        sample.text.loss_mask.assign(std::size_t(length), 1);
        std::vector<float> features;
        for (index_t i = 0; i < length * width; ++i)
          features.push_back(value(number, i / width, i % width));
        sample.features = std::make_shared<MemoryFeatures>(std::move(features), width);
        std::vector<index_t> anchors;
        for (index_t a = length / 3; a < length - 1; a += 1 + length / 4) anchors.push_back(a);
        blocks.back().push_back(
            blocks_at(sample.text.tokens, sample.text.loss_mask, std::move(anchors), 2));
        samples.back().push_back(std::move(sample));
        ++number;
      }
    }
  }
  std::vector<std::vector<index_t>> kept() const {
    std::vector<std::vector<index_t>> rows;
    for (const auto& replica : blocks) {
      rows.emplace_back();
      for (const Blocks& b : replica) rows.back().push_back(b.context_rows());
    }
    return rows;
  }
};

TEST_CASE(
    "Every rank gets the rows that its part of the batch reads, wherever they were captured") {
  const Problem many({{200, 3, 90}, {1, 400}, {70}}), few({{150}, {}, {}}), one({{333, 64}});
  struct Case {
    const Problem* problem;
    SequenceLayout layout;
    index_t tensor_parallel;
  };
  const Case cases[] = {{&one, {1, 1}, 1},  {&one, {2, 1}, 1},  {&one, {2, 1}, 2},
                        {&one, {2, 2}, 2},  {&one, {3, 2}, 2},  {&many, {1, 1}, 1},
                        {&many, {1, 1}, 3}, {&many, {2, 1}, 3}, {&many, {1, 2}, 6},
                        {&many, {2, 1}, 2}, {&few, {2, 1}, 1},  {&few, {1, 1}, 3}};
  for (const auto& [problem, layout, t] : cases) {
    CAPTURE(layout.ulysses);
    CAPTURE(layout.ring);
    CAPTURE(t);
    const auto replicas = index_t(problem->samples.size());
    const FeatureDeal deal(layout, t, problem->kept());
    REQUIRE(deal.ranks() == replicas * layout.ranks());
    std::mutex mutex;
    std::vector<int> captured(std::size_t(deal.samples()));
    ThreadCommunicator::run(int(deal.ranks()), [&](ThreadCommunicator world) {
      B cpu;
      SequenceParallelGroup group(std::move(world), layout);
      const index_t me = group.world().rank();
      std::vector<float> rows;
      const Range share = deal.captured_by(me / t);
      for (index_t sample = share.begin; sample < share.end; ++sample) {
        for (index_t i = 0; i < deal.kept(sample) * width; ++i)
          rows.push_back(value(sample, i / width, i % width));
        const std::lock_guard lock(mutex);
        captured[std::size_t(sample)] += 1;
      }
      Tensor<B, float, 2> features(cpu, {index_t(rows.size()) / width, width});
      cpu.upload(rows.data(), features.view().data, index_t(rows.size()));
      auto received = exchange_features(cpu, group, me / t, deal, std::move(features), width);

      const auto& memory = problem->samples[std::size_t(group.replica())];
      const auto& blocks = problem->blocks[std::size_t(group.replica())];
      const std::vector<Sample> samples(memory.begin(), memory.end());
      const auto expected = shard(cpu, group, samples, blocks, 0),
                 found = shard(cpu, group, blocks, 0, std::move(received));
      CHECK(found.samples == expected.samples);
      CHECK(found.context_position.size() == expected.context_position.size());
      const auto a = expected.features.rows().wide(), b = found.features.rows().wide();
      CHECK(std::vector<float>(a.data, a.data + a.size()) ==
            std::vector<float>(b.data, b.data + b.size()));
      index_t bytes = 0;
      for (index_t to = 0; to < deal.ranks(); ++to)
        if (to != me) bytes += deal.rows(me, to) * width * index_t(sizeof(float));
      CHECK(group.world().traffic().all_to_all == Traffic::Count{1, bytes});
    });
    // The target runs on a sample once, on the ranks that hold it together.
    for (const int times : captured) CHECK(times == t);
  }
}

TEST_CASE("A batch takes no features but those of its context rows") {
  B cpu;
  const Problem one({{333, 64}});
  const SequenceParallelGroup group(SingleProcess{});
  CHECK_THROWS_AS(shard(cpu, group, one.blocks[0], 0, Tensor<B, float, 2>(cpu, {1, width})), Error);
}

}  // namespace feature_exchange_test
