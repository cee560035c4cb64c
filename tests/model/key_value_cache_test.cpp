#include "dflash/model/key_value_cache.hpp"

#include <doctest/doctest.h>

#include "dflash/cpu.hpp"

namespace key_value_cache_test {

using namespace dflash;
using Cache = KeyValueCache<CpuBackend<float>>;

float mark(index_t layer, index_t row, index_t i) { return float(1000 * layer + 10 * row + i); }

/// Appends rows whose every element tells layer, row and place.
void append(Cache& cache, index_t rows) {
  const index_t held = cache.length();
  cache.prepare(rows);
  for (index_t layer = 0; layer < cache.layers(); ++layer) {
    const auto k = cache.k(layer, held + rows), v = cache.v(layer, held + rows);
    for (index_t row = held; row < held + rows; ++row)
      for (index_t i = 0; i < 6; ++i) {
        k(row, i / 3, i % 3) = mark(layer, row, i);
        v(row, i / 3, i % 3) = -mark(layer, row, i);
      }
  }
  cache.append(rows);
}

void check(Cache& cache) {
  for (index_t layer = 0; layer < cache.layers(); ++layer) {
    const auto k = cache.k(layer, cache.length()), v = cache.v(layer, cache.length());
    REQUIRE(k.shape[0] == cache.length());
    for (index_t row = 0; row < cache.length(); ++row)
      for (index_t i = 0; i < 6; ++i) {
        REQUIRE(k(row, i / 3, i % 3) == mark(layer, row, i));
        REQUIRE(v(row, i / 3, i % 3) == -mark(layer, row, i));
      }
  }
}

TEST_CASE("rows survive growth and truncation") {
  CpuBackend<float> backend;
  Cache cache(backend, 3, 2, 3);
  CHECK(cache.length() == 0);
  for (const index_t rows : {5, 1, 1, 30, 2}) {
    append(cache, rows);
    check(cache);
  }
  CHECK(cache.length() == 39);
  cache.truncate(7);
  CHECK(cache.length() == 7);
  check(cache);
  append(cache, 50);
  CHECK(cache.length() == 57);
  check(cache);
}

TEST_CASE("memory grows by doubling, and not at all after reserve") {
  CpuBackend<float> backend;
  Cache cache(backend, 1, 2, 3);
  cache.reserve(64);
  for (index_t i = 0; i < 64; ++i) append(cache, 1);
  CHECK(cache.capacity() == 64);
  append(cache, 1);
  CHECK(cache.capacity() == 128);
  cache.reserve(10);
  CHECK(cache.capacity() == 128);
  check(cache);
}

TEST_CASE("what breaks the order of calls is refused") {
  CpuBackend<float> backend;
  Cache cache(backend, 1, 2, 3);
  CHECK_THROWS_AS(cache.append(1), Error);
  append(cache, 4);
  CHECK_THROWS_AS(cache.truncate(5), Error);
  CHECK_THROWS_AS(cache.truncate(-1), Error);
}

}  // namespace key_value_cache_test
