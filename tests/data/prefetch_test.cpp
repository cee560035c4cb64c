#include "dflash/data/prefetch.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>

namespace prefetch_test {

using namespace dflash;

TEST_CASE("items come in order, at most one ahead") {
  std::atomic<index_t> begun{0};
  Prefetch items(3, 40, [&](index_t i) {
    ++begun;
    return std::make_unique<index_t>(i);
  });
  for (index_t i = 3; i < 40; ++i) {
    const auto item = items.next();
    REQUIRE(item != nullptr);
    CHECK(*item == i);
    CHECK(begun <= i - 3 + 2);  // this one and the next
  }
  CHECK_THROWS_AS(items.next(), Error);
}

TEST_CASE("the next item is made while this one is used") {
  std::atomic<bool> second{false};
  Prefetch items(0, 2, [&](index_t i) {
    if (i == 1) second = true;
    return i;
  });
  CHECK(items.next() == 0);
  for (int i = 0; i < 10000 && !second; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK(second);
}

TEST_CASE("an exception comes in the place of its item, and again") {
  Prefetch items(0, 5, [](index_t i) {
    if (i == 2) throw std::runtime_error("damaged");
    return i;
  });
  CHECK(items.next() == 0);
  CHECK(items.next() == 1);
  CHECK_THROWS_WITH_AS(items.next(), "damaged", std::runtime_error);
  CHECK_THROWS_WITH_AS(items.next(), "damaged", std::runtime_error);
}

TEST_CASE("it may be left before all items are taken, or with none") {
  {
    Prefetch items(0, 100, [](index_t i) { return i; });
  }
  Prefetch none(4, 4, [](index_t i) { return i; });
  CHECK_THROWS_AS(none.next(), Error);
}

}  // namespace prefetch_test
