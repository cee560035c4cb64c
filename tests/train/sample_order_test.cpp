#include "dflash/train/sample_order.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <map>

namespace sample_order_test {

using namespace dflash;

TEST_CASE("each epoch sees every sample once") {
  for (const index_t size : {1, 2, 7, 100}) {
    for (index_t epoch = 0; epoch < 3; ++epoch) {
      auto order = epoch_order(size, 42, epoch);
      std::sort(order.begin(), order.end());
      for (index_t i = 0; i < size; ++i) CHECK(order[std::size_t(i)] == i);
    }
  }
}

TEST_CASE("the order depends on the seed and the epoch, and on nothing else") {
  CHECK(epoch_order(50, 1, 0) == epoch_order(50, 1, 0));
  CHECK(epoch_order(50, 1, 0) != epoch_order(50, 2, 0));
  CHECK(epoch_order(50, 1, 0) != epoch_order(50, 1, 1));
}

TEST_CASE("every order is equally likely") {
  constexpr int trials = 6000;
  std::map<std::vector<index_t>, int> seen;
  for (int seed = 0; seed < trials; ++seed) ++seen[epoch_order(3, std::uint64_t(seed), 0)];
  CHECK(seen.size() == 6);
  for (const auto& [order, count] : seen) CHECK(std::abs(count - trials / 6) < 150);  // 5 sigma
}

TEST_CASE("positions run on across epochs and may be asked for in any order") {
  SampleOrder order(5, 7);
  std::vector<index_t> forward;
  for (index_t position = 0; position < 15; ++position) forward.push_back(order.sample(position));
  for (index_t epoch = 0; epoch < 3; ++epoch) {
    const auto expected = epoch_order(5, 7, epoch);
    CHECK(std::equal(expected.begin(), expected.end(), forward.begin() + epoch * 5));
  }
  SampleOrder resumed(5, 7);
  for (index_t position = 14; position >= 0; --position)
    CHECK(resumed.sample(position) == forward[std::size_t(position)]);
  CHECK(order.epoch(4) == 0);
  CHECK(order.epoch(5) == 1);
  CHECK_THROWS_AS(SampleOrder(0, 1), Error);
}

TEST_CASE("the replicas of all micro-steps take consecutive positions, each once") {
  for (const index_t replicas : {1, 2, 3, 5, 7}) {
    index_t next = 0;
    for (index_t step = 0; step < 3; ++step)
      for (index_t micro = 0; micro < 2; ++micro)
        for (index_t replica = 0; replica < replicas; ++replica) {
          const Range own = replica_positions(step, micro, 5, 2, replicas, replica);
          CHECK(own.begin == next);
          CHECK(own.size() >= 5 / replicas);
          CHECK(own.size() <= 5 / replicas + 1);
          next = own.end;
        }
    CHECK(next == 30);
  }
}

}  // namespace sample_order_test
