#include "dflash/data/shard_plan.hpp"

#include <doctest/doctest.h>

#include "data/store_fixture.hpp"

namespace shard_plan_test {

using namespace dflash;

TEST_CASE("shards cover the samples in order, as full as their size allows") {
  for (const auto dtype : {DType::f32, DType::bf16, DType::f8_e4m3}) {
    const StoreFixture data(100, dtype, dtype == DType::bf16 ? "eagle3" : "dflash");
    const ShardPlan plan = data.plan();
    const auto bytes = [&](Range samples) {
      index_t rows = 0, id_bytes = 0;
      for (index_t i = samples.begin; i < samples.end; ++i) {
        rows += index_t(data.samples[std::size_t(i)].tokens.size());
        id_bytes += index_t(data.samples[std::size_t(i)].id.size());
      }
      return shard_data_bytes(data.description, samples.size(), rows, id_bytes);
    };
    CHECK(plan.size() == 100);
    CHECK(plan.shards() > 5);
    index_t end = 0, rows = 0;
    for (index_t k = 0; k < plan.shards(); ++k) {
      const Range samples = plan.shard(k).samples;
      CHECK(samples.begin == end);
      CHECK(samples.size() > 0);
      CHECK(bytes(samples) <= data.description.shard_bytes);
      if (k + 1 < plan.shards())
        CHECK(bytes({samples.begin, samples.end + 1}) > data.description.shard_bytes);
      end = samples.end;
      rows += plan.shard(k).rows;
    }
    CHECK(end == 100);
    CHECK(rows == plan.rows());
  }
}

TEST_CASE("a sample that is larger than a shard has one of its own") {
  StoreFixture data(3);
  data.description.shard_bytes = 1;
  const ShardPlan plan = data.plan();
  CHECK(plan.shards() == 3);
}

TEST_CASE("the planned bytes are those of the files") {
  const TemporaryFolder folder;
  const StoreFixture data(40, DType::bf16);
  data.capture(folder.path());
  index_t bytes = 0;
  for (index_t k = 0; k < data.plan().shards(); ++k)
    bytes += index_t(std::filesystem::file_size(folder / shard_name(k)));
  CHECK(bytes == data.plan().bytes());
}

TEST_CASE("the fingerprint of the data moves with every id, token, mask and order") {
  const StoreFixture data(3);
  const auto of = [](const StoreFixture& d) { return d.plan().description().data_fingerprint; };
  CHECK(of(data) == of(StoreFixture(3)));
  StoreFixture other = data;
  other.samples[1].id += "x";
  CHECK(of(other) != of(data));
  other = data;
  other.samples[1].tokens[0] += 1;
  CHECK(of(other) != of(data));
  other = data;
  other.samples[1].loss_mask[0] ^= 1;
  CHECK(of(other) != of(data));
  other = data;
  std::swap(other.samples[1], other.samples[2]);
  CHECK(of(other) != of(data));
}

TEST_CASE("a sample whose mask has another length is refused by name") {
  ShardPlan plan(StoreFixture(1).description);
  CHECK(error_of([&] {
          plan.add({"a", {1, 2}, {1}});
        }) == "sample \"a\" has 2 tokens but a loss mask of 1");
}

TEST_CASE("shards are dealt in runs of enough rows, their samples in ranges that do not touch") {
  const ShardPlan plan = StoreFixture(40).plan();
  REQUIRE(plan.shards() > 8);
  std::vector<index_t> some;
  for (index_t k = 0; k < plan.shards(); ++k)
    if (k != 3 && k != 4) some.push_back(k);
  std::vector<index_t> dealt;
  const auto runs = plan.runs(some, 30);
  for (const auto& run : runs) {
    index_t rows = 0;
    for (const index_t k : run) rows += plan.shard(k).rows;
    if (&run != &runs.back()) {
      CHECK(rows >= 30);
      CHECK(rows - plan.shard(run.back()).rows < 30);
    }
    dealt.insert(dealt.end(), run.begin(), run.end());
  }
  CHECK(dealt == some);
  const auto ranges = plan.samples(some);
  REQUIRE(ranges.size() == 2);
  CHECK(ranges[0].begin == 0);
  CHECK(ranges[0].end == plan.shard(3).samples.begin);
  CHECK(ranges[1].begin == plan.shard(5).samples.begin);
  CHECK(ranges[1].end == 40);
  CHECK(plan.runs({}, 30).empty());
}

}  // namespace shard_plan_test
