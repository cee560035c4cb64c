#include "dflash/core/thread_pool.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace thread_pool_test {

using namespace dflash;

TEST_CASE("every iteration runs once, on a thread of the crew") {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (index_t n : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> count(std::size_t(n) + 1);
      std::atomic<bool> known = true;
      pool.parallel_for(n, [&](index_t i, int thread) {
        ++count[std::size_t(i)];
        if (thread < 0 || thread >= threads) known = false;
      });
      CHECK(known);
      for (index_t i = 0; i < n; ++i) CHECK(count[std::size_t(i)] == 1);
    }
  }
}

TEST_CASE("two iterations run at the same time") {
  ThreadPool pool(2);
  std::atomic<int> arrived = 0;
  pool.parallel_for(2, [&](index_t, int) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();  // would not end on one thread
  });
  CHECK(arrived == 2);
}

TEST_CASE("many short loops, with pauses in which the crew falls asleep") {
  ThreadPool pool(3);
  std::atomic<index_t> sum = 0;
  for (int round = 0; round < 300; ++round) {
    pool.parallel_for(7, [&](index_t i, int) { sum += i; });
    if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  CHECK(sum == 300 * 21);
}

TEST_CASE("an exception comes out at the caller, and the crew works on") {
  for (int threads : {1, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 20; ++round) {
      CHECK_THROWS_WITH_AS(pool.parallel_for(100,
                                             [](index_t i, int) {
                                               if (i % 10 == 3) throw std::runtime_error("three");
                                             }),
                           "three", std::runtime_error);
      std::atomic<int> count = 0;
      pool.parallel_for(10, [&](index_t, int) { ++count; });
      CHECK(count == 10);
    }
  }
}

TEST_CASE("a crew of nobody is refused") { CHECK_THROWS_AS(ThreadPool(0), Error); }

}  // namespace thread_pool_test
