#include "dflash/data/batch.hpp"

#include <doctest/doctest.h>

#include <numeric>

#include "data/bfloat16_features.hpp"
#include "dflash/cpu.hpp"
#include "dflash/data/memory_sample.hpp"

namespace batch_test {

using namespace dflash;
using dflash_test::with_bfloat16_features;
using Cpu = CpuBackend<float>;

/// Fails when rows are read that nobody may need, and remembers what was read.
class WatchedFeatures final : public FeatureRows {
 public:
  WatchedFeatures(index_t rows, float first) : rows_(rows), first_(first) {}
  index_t rows() const override { return rows_; }
  index_t width() const override { return 2; }
  void read(Range range, float* out) const override {
    REQUIRE(range.begin >= 0);
    REQUIRE(range.end <= rows_);
    for (index_t row = range.begin; row < range.end; ++row) {
      read_.push_back(row);
      *out++ = first_ + float(row);
      *out++ = -first_ - float(row);
    }
  }
  mutable std::vector<index_t> read_;

 private:
  index_t rows_;
  float first_;
};

MemorySample sample(const std::string& id, index_t length, float first) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(length));
  std::iota(tokens.begin(), tokens.end(), 100);
  return {{id, tokens, std::vector<std::uint8_t>(tokens.size(), 1)},
          std::make_shared<WatchedFeatures>(length, first)};
}

/// As if the host could not reach its memory.
struct FarBackend : Cpu {
  static constexpr bool host_memory = false;
};

template <class U>
std::vector<U> host(const Tensor<Cpu, U, 1>& t) {
  return {t.view().data, t.view().data + t.size()};
}

TEST_CASE("A batch packs samples without padding and reads only rows before the last anchor") {
  Cpu cpu;
  const MemorySample a = sample("a", 6, 0), b = sample("b", 9, 1000);
  const std::vector<Sample> samples{a, b};
  const std::vector<Blocks> blocks{blocks_at(a.text.tokens, a.text.loss_mask, {1, 3}, 2),
                                   blocks_at(b.text.tokens, b.text.loss_mask, {4}, 2)};
  const auto batch = shard(cpu, SequenceParallelGroup(SingleProcess{}), samples, blocks, 7);
  CHECK(batch.context_total == 3 + 4);
  CHECK(host(batch.context_position) == std::vector<index_t>{0, 1, 2, 0, 1, 2, 3});
  CHECK(host(batch.block_position) == std::vector<index_t>{1, 2, 3, 4, 4, 5});
  CHECK(host(batch.tokens) == std::vector<std::int32_t>{101, 7, 103, 7, 104, 7});
  CHECK(host(batch.context_begin) == std::vector<index_t>{0, 0, 3});
  CHECK(host(batch.context_end) == std::vector<index_t>{1, 3, 7});
  CHECK(batch.labels == HostVector<std::int32_t>{101, 102, 103, 104, 104, 105});
  CHECK(batch.features.rows().wide()(3, 0) == 1000);
  CHECK(batch.features.rows().wide()(6, 1) == -1003);
  for (const auto& memory : {a, b}) {
    const auto& read = static_cast<const WatchedFeatures&>(*memory.features).read_;
    CHECK(read.size() == (memory.text.id == "a" ? 3 : 4));
  }
}

TEST_CASE("A batch may have samples without blocks, or no samples at all") {
  Cpu cpu;
  const MemorySample a = sample("a", 6, 0);
  const std::vector<Sample> samples{a};
  const std::vector<Blocks> blocks{blocks_at(a.text.tokens, a.text.loss_mask, {}, 2)};
  const SequenceParallelGroup group(SingleProcess{});
  const auto empty = shard(cpu, group, samples, blocks, 7);
  CHECK(empty.blocks_total == 0);
  CHECK(empty.samples == 1);
  CHECK(shard<Cpu>(cpu, group, {}, {}, 7).tokens.size() == 0);
}

TEST_CASE("Features of many rows are those of few, in memory of every kind and in every type") {
  const index_t rows = 140000;
  const MemorySample a = sample("a", 6, 0), b = sample("b", rows + 8, 0.25f);
  const std::vector<Sample> samples{a, b};
  const std::vector<Blocks> blocks{blocks_at(a.text.tokens, a.text.loss_mask, {3}, 2),
                                   blocks_at(b.text.tokens, b.text.loss_mask, {rows}, 2)};
  const SequenceParallelGroup group(SingleProcess{});
  Cpu cpu;
  FarBackend far;
  CpuBackend<double> wide;
  const auto near_batch = shard(cpu, group, samples, blocks, 7);
  const auto far_batch = shard(far, group, samples, blocks, 7);
  const auto wide_batch = shard(wide, group, samples, blocks, 7);
  REQUIRE(near_batch.features.size() == 2 * (rows + 3));
  CHECK(std::equal(near_batch.features.rows().wide().data,
                   near_batch.features.rows().wide().data + near_batch.features.size(),
                   far_batch.features.rows().wide().data));
  CHECK(std::equal(near_batch.features.rows().wide().data,
                   near_batch.features.rows().wide().data + near_batch.features.size(),
                   wide_batch.features.rows().wide().data));
  CHECK(near_batch.features.rows().wide()(rows + 2, 0) == float(rows) - 0.75f);

  std::vector<bfloat16> rounded(2 * 20000);
  b.features->read_rounded({100, 20100}, rounded.data());
  for (std::size_t i = 0; i < rounded.size(); i += 999)
    CHECK(float(rounded[i]) ==
          float(bfloat16(near_batch.features.rows().wide().data[2 * (3 + 100) + index_t(i)])));
}

TEST_CASE("Features stay in bfloat16 where all samples have that and the backend keeps it") {
  const MemorySample a = sample("a", 6, 0.3f), b = sample("b", 9, 7.7f);
  const MemorySample narrow_a = with_bfloat16_features(a), narrow_b = with_bfloat16_features(b);
  const std::vector<Blocks> blocks{blocks_at(a.text.tokens, a.text.loss_mask, {3}, 2),
                                   blocks_at(b.text.tokens, b.text.loss_mask, {6}, 2)};
  const SequenceParallelGroup group(SingleProcess{});
  Cpu cpu;
  CpuBackend<double> doubles;
  const auto batch_of = [&](auto& backend, const MemorySample& first, const MemorySample& second) {
    return shard(backend, group, std::vector<Sample>{first, second}, blocks, 7);
  };
  const auto narrow = batch_of(cpu, narrow_a, narrow_b), mixed = batch_of(cpu, narrow_a, b);
  const auto wide = batch_of(doubles, narrow_a, narrow_b);
  REQUIRE(narrow.features.rows().narrow());
  CHECK_FALSE(mixed.features.rows().narrow());
  CHECK_FALSE(wide.features.rows().narrow());
  CHECK_THROWS_AS(narrow.features.rows().wide(), Error);
  narrow.features.rows().visit([&](const auto& rows) {
    for (index_t row = 0; row < 9; ++row)
      for (index_t i = 0; i < 2; ++i) {
        const double sign = i == 0 ? 1 : -1, value = row < 3 ? 0.3f + row : 7.7f + row - 3;
        CHECK(float(rows(row, i)) == float(bfloat16(float(sign * value))));
        CHECK(wide.features.rows().wide()(row, i) == float(rows(row, i)));
        CHECK(mixed.features.rows().wide()(row, i) ==
              (row < 3 ? float(rows(row, i)) : float(sign * value)));
      }
  });
}

}  // namespace batch_test
