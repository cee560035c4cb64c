#include "dflash/data/blocks.hpp"

#include <doctest/doctest.h>

#include <map>

namespace blocks_test {

using namespace dflash;

struct Text {
  std::string id;
  std::vector<std::int32_t> tokens;
  std::vector<std::uint8_t> mask;

  Text(std::string name, const std::string& bits) : id(std::move(name)) {
    for (char c : bits) {
      tokens.push_back(std::int32_t(10 + tokens.size()));
      mask.push_back(c == '1' ? 1 : 0);
    }
  }
  Sample sample() const {
    return {id,
            {tokens.data(), {index_t(tokens.size())}},
            {mask.data(), {index_t(mask.size())}},
            nullptr};
  }
};

TEST_CASE("Labels and weights are those of the published example") {
  const Text text("a", "0011111111");
  const Blocks blocks = blocks_at(text.tokens, text.mask, {2, 6}, 4);
  CHECK(blocks.anchor_tokens == std::vector<std::int32_t>{12, 16});
  CHECK(blocks.labels == std::vector<std::int32_t>{12, 13, 14, 15, 16, 17, 18, 19});
  CHECK(blocks.weights == std::vector<float>{0, 1, 1, 1, 0, 1, 1, 1});
  CHECK(blocks.context_rows() == 6);
}

TEST_CASE("A tail block's slots behind the end and unsupervised slots weigh nothing") {
  const Text text("a", "11111010");
  const Blocks blocks = blocks_at(text.tokens, text.mask, {3, 6}, 4);
  CHECK(blocks.weights == std::vector<float>{0, 1, 0, 1, 0, 0, 0, 0});
  CHECK(blocks.labels == std::vector<std::int32_t>{13, 14, 15, 16, 16, 17, 17, 17});
}

TEST_CASE("Candidates follow the two rules") {
  const Text text("a", "1101011");
  CHECK(anchor_candidates(text.mask, {.size = 4}) == std::vector<index_t>{0, 5});
  CHECK(anchor_candidates(text.mask, {.size = 4, .rule = AnchorRule::supervised_start}) ==
        std::vector<index_t>{0, 1, 3});
  CHECK(anchor_candidates({}, {.size = 4}).empty());
}

TEST_CASE("Blocks are a pure function of sample id, seed and epoch") {
  const Text text("a", std::string(200, '1')), other("b", std::string(200, '1'));
  const BlockOptions options{.count = 8, .size = 4};
  const auto first = sample_blocks(text.sample(), options, 1, 0).anchors;
  CHECK(first.size() == 8);
  CHECK(sample_blocks(text.sample(), options, 1, 0).anchors == first);
  CHECK(sample_blocks(text.sample(), options, 2, 0).anchors != first);
  CHECK(sample_blocks(text.sample(), options, 1, 1).anchors != first);
  CHECK(sample_blocks(other.sample(), options, 1, 0).anchors != first);
}

TEST_CASE("Anchors are drawn uniformly, without replacement") {
  const Text text("a", "0011111111100");
  std::map<index_t, int> seen;
  const int epochs = 4000;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    const auto anchors =
        sample_blocks(text.sample(), {.count = 2, .size = 4}, 3, std::uint64_t(epoch)).anchors;
    REQUIRE(anchors.size() == 2);
    REQUIRE(anchors[0] < anchors[1]);
    for (index_t a : anchors) ++seen[a];
  }
  CHECK(seen.size() == 8);  // positions 2 to 9
  // 1000 expected of each; the standard deviation is 27.
  for (const auto& [anchor, count] : seen) CHECK(std::abs(count - 1000) < 140);
}

TEST_CASE("A sample without candidates gives no blocks") {
  const Text text("a", "01010");
  const Blocks blocks = sample_blocks(text.sample(), {.count = 8, .size = 4}, 1, 0);
  CHECK(blocks.count() == 0);
  CHECK(blocks.context_rows() == 0);
  CHECK(blocks.labels.empty());
}

}  // namespace blocks_test
