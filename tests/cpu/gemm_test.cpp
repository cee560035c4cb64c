#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/precisions.hpp"
#include "cpu/registers_in_memory.hpp"
#include "cpu/support.hpp"
#include "dflash/cpu.hpp"

namespace gemm_test {

using namespace dflash;
using namespace dflash_test;

template <class T>
std::vector<T> product(const std::vector<T>& x, const std::vector<T>& w, index_t n, index_t o,
                       index_t k) {
  std::vector<T> y(std::size_t(n * o));
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < o; ++j) {
      double sum = 0;
      for (index_t c = 0; c < k; ++c) sum += double(x[at(i * k + c)]) * double(w[at(j * k + c)]);
      y[at(i * o + j)] = T(sum);
    }
  return y;
}

template <class T>
std::vector<T> transposed(const std::vector<T>& x, index_t rows, index_t columns) {
  std::vector<T> y(x.size());
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < columns; ++j) y[at(j * rows + i)] = x[at(i * columns + j)];
  return y;
}

/// Columns [first, first + some) of x.                                        x (rows, columns)
template <class T>
std::vector<T> columns_of(const std::vector<T>& x, index_t rows, index_t columns, index_t first,
                          index_t some) {
  std::vector<T> y;
  for (index_t i = 0; i < rows; ++i)
    y.insert(y.end(), x.begin() + i * columns + first, x.begin() + i * columns + first + some);
  return y;
}

struct Shape {
  index_t n, o, k;
};
const Shape shapes[] = {
    {1, 1, 1},     {3, 5, 7},        {12, 32, 16},   {13, 33, 17}, {25, 48, 513},
    {64, 16, 65},  {30, 100, 40},    {7, 200, 1100}, {0, 4, 3},    {4, 0, 3},
    {5, 6, 0},     {50, 1030, 1100},  // several blocks of rows and of columns
    {1024, 34, 70}};                  // columns of the weight gradient that crowd a cache

TEST_CASE_TEMPLATE("the three products are right on every path in every precision", T, float,
                   double) {
  for (const auto& [path, precision] : ways<T>())
    for (int threads : {1, 3})
      for (const Shape& shape : shapes) {
        const index_t n = shape.n, o = shape.o, k = shape.k;
        CAPTURE(name_of(path));
        CAPTURE(name_of(precision));
        CAPTURE(n);
        CAPTURE(o);
        CAPTURE(k);
        // Without the product of the rests, 2^-18 of each term is lost.
        const bool split = precision == CpuPrecision::bf16x3;
        const double tolerance = (std::is_same_v<T, double> ? 1e-13
                                  : split                   ? 3e-5
                                                            : 2e-5) *
                                 std::sqrt(double(k + 1));
        CpuBackend<T> backend(threads, path, precision);
        const auto x = random<T>(n * k, 1), w = random<T>(o * k, 2);
        const auto expected = product(as_factor(x, precision), as_factor(w, precision), n, o, k);
        std::vector<T> y(expected.size(), T(9));
        linear(backend, matrix(x, n, k), matrix(w, o, k), matrix(y, n, o));
        CHECK(difference(y, expected) <= tolerance);

        const auto frozen = freeze(backend, matrix(w, o, k));
        std::vector<T> again(expected.size(), T(9));
        linear(backend, matrix(x, n, k), frozen, matrix(again, n, o));
        CHECK(same_bits(y, again));

        // The other two forms compute the same numbers from transposed factors, and add or write.
        const auto wt = transposed(w, o, k), xt = transposed(x, n, k);
        const auto old = random<T>(n * o, 3);
        auto dx = old, dw = old;
        linear_backward_input(backend, matrix(x, n, k), matrix(wt, k, o), matrix(dx, n, o));
        linear_backward_weight(backend, matrix(xt, k, n), matrix(wt, k, o), matrix(dw, n, o));
        // Chains are added one by one, as are the products of a split; sums of matrix registers go
        // on from what was there.
        const bool chains = !split && (path != CpuPath::amx || precision == CpuPrecision::fp32);
        auto sum = old;
        for (index_t first = 0; first < k; first += detail::gemm_chain) {
          const index_t length = std::min(detail::gemm_chain, k - first);
          const auto some_x = columns_of(x, n, k, first, length),
                     some_w = columns_of(w, o, k, first, length);
          std::vector<T> part(old.size());
          linear(backend, matrix(some_x, n, length), matrix(some_w, o, length), matrix(part, n, o));
          for (std::size_t i = 0; i < old.size(); ++i) sum[i] += part[i];
        }
        CHECK(difference(dx, sum) <= (chains ? 0 : tolerance));
        CHECK(same_bits(dw, dx));
        std::vector<T> zeros(old.size(), T(0));
        linear_backward_input(backend, matrix(x, n, k), matrix(wt, k, o), matrix(zeros, n, o));
        for (auto* written : {&dx, &dw})
          written->assign(old.size(), std::numeric_limits<T>::quiet_NaN());
        linear_backward_input(backend, matrix(x, n, k), matrix(wt, k, o), matrix(dx, n, o),
                              Result::written);
        linear_backward_weight(backend, matrix(xt, k, n), matrix(wt, k, o), matrix(dw, n, o),
                               Result::written);
        CHECK(dx == zeros);
        CHECK(dw == zeros);
      }
}

TEST_CASE_TEMPLATE("a row's bits do not depend on the other rows, its place or the threads", T,
                   float, double) {
  for (const auto& [path, precision] : ways<T>())
    for (const Shape& shape : {Shape{61, 70, 600}, Shape{100, 33, 1024}}) {
      const index_t n = shape.n, o = shape.o, k = shape.k;
      CAPTURE(name_of(path));
      CAPTURE(name_of(precision));
      CpuBackend<T> backend(1, path, precision), crew(4, path, precision);
      const auto x = random<T>(n * k, 4), w = random<T>(o * k, 5);
      std::vector<T> y(at(n * o)), part(at(n * o));
      linear(backend, matrix(x, n, k), matrix(w, o, k), matrix(y, n, o));
      linear(crew, matrix(x, n, k), matrix(w, o, k), matrix(part, n, o));
      CHECK(same_bits(y, part));
      const auto frozen = freeze(backend, matrix(w, o, k));
      for (index_t begin = 0; begin < n; begin += 7)
        for (index_t rows : {1, 2, 5, 12, 16, 33}) {
          if (begin + rows > n) continue;
          CAPTURE(begin);
          CAPTURE(rows);
          const auto some = matrix(x, n, k).rows({begin, begin + rows});
          const auto out = matrix(part, n, o).rows({0, rows});
          fill(backend, out, T(0));
          linear(backend, some, matrix(w, o, k), out);
          CHECK(std::memcmp(out.data, &y[at(begin * o)], at(rows * o) * sizeof(T)) == 0);
          fill(backend, out, T(0));
          linear(crew, some, frozen, out);
          CHECK(std::memcmp(out.data, &y[at(begin * o)], at(rows * o) * sizeof(T)) == 0);
        }
    }
}

TEST_CASE("a thread has room for every block of rows that it copies") {
  const auto check = [](const auto& kernel) {
    for (const index_t depth : {16, 250, 500, 2000})
      for (index_t most = 1; most <= 400; ++most)
        for (index_t rows = 1; rows <= most; ++rows) {
          const index_t blocks = detail::row_blocks(kernel, rows, depth);
          REQUIRE((rows + blocks - 1) / blocks <= detail::row_block(kernel, most, depth));
        }
  };
  check(detail::gemm_kernel<float>(cpu_paths().back()));
  check(detail::bfloat16_kernel(cpu_paths().back(), false));
}

TEST_CASE("gradients of weights have the same bits on any number of threads") {
  for (const auto& [path, precision] : ways<float>())
    for (const Shape& shape : {Shape{1000, 480, 160}, {512, 1024, 64}, {2047, 128, 160}}) {
      const index_t n = shape.n, o = shape.o, k = shape.k;
      CAPTURE(name_of(path));
      CAPTURE(name_of(precision));
      const auto dy = random<float>(n * o, 4), x = random<float>(n * k, 5);
      const auto gradient = [&](int threads) {
        CpuBackend<float> backend(threads, path, precision);
        std::vector<float> dw(at(o * k), 1.f);
        linear_backward_weight(backend, matrix(dy, n, o), matrix(x, n, k), matrix(dw, o, k));
        return dw;
      };
      const auto one = gradient(1);
      for (const int threads : {2, 3, 5}) CHECK(same_bits(gradient(threads), one));
    }
}

TEST_CASE("weights frozen in bfloat16 give the bits of their values in float") {
  for (const auto& [path, precision] : ways<float>())
    for (const Shape& shape : shapes) {
      const index_t n = shape.n, o = shape.o, k = shape.k;
      CAPTURE(name_of(path));
      CAPTURE(name_of(precision));
      CpuBackend<float> backend(2, path, precision);
      const auto x = random<float>(n * k, 10),
                 w = as_factor(random<float>(o * k, 11), CpuPrecision::bf16);
      const std::vector<bfloat16> stored(w.begin(), w.end());
      std::vector<float> y(at(n * o)), again(at(n * o), 9.0f);
      linear(backend, matrix(x, n, k), matrix(w, o, k), matrix(y, n, o));
      const auto frozen = freeze(backend, matrix(stored, o, k));
      linear(backend, matrix(x, n, k), frozen, matrix(again, n, o));
      CHECK(same_bits(y, again));
    }
}

TEST_CASE_TEMPLATE("sums longer than a slice are right, and the same with frozen weights", T, float,
                   double) {
  const index_t n = 3, o = 37, k = 20000;
  const auto x = random<T>(n * k, 6), w = random<T>(o * k, 7);
  for (const auto& [path, precision] : ways<T>()) {
    CAPTURE(name_of(path));
    CAPTURE(name_of(precision));
    CpuBackend<T> backend(2, path, precision);
    const auto expected = product(as_factor(x, precision), as_factor(w, precision), n, o, k);
    std::vector<T> y(at(n * o)), again(at(n * o));
    linear(backend, matrix(x, n, k), matrix(w, o, k), matrix(y, n, o));
    CHECK(difference(y, expected) < (std::is_same_v<T, double> ? 1e-11 : 4e-3));
    const auto frozen = freeze(backend, matrix(w, o, k));
    linear(backend, matrix(x, n, k), frozen, matrix(again, n, o));
    CHECK(same_bits(y, again));
  }
}

TEST_CASE("paths with fused multiply-add give the same bits") {
  const auto paths = cpu_paths();
  const index_t n = 37, o = 91, k = 700;
  const auto x = random<float>(n * k, 8), w = random<float>(o * k, 9);
  std::vector<std::vector<float>> results;
  for (CpuPath path : paths) {
    if (path == CpuPath::portable) continue;
    CpuBackend<float> backend(1, path);
    std::vector<float> y(at(n * o));
    linear(backend, matrix(x, n, k), matrix(w, o, k), matrix(y, n, o));
    results.push_back(y);
  }
  for (const auto& y : results) CHECK(same_bits(y, results[0]));
}

TEST_CASE("products by matrix registers are right") {
  CpuBackend<float> backend;
  for (bool split : {false, true})
    for (const Shape& shape : shapes) {
      const auto precision = split ? CpuPrecision::bf16x3 : CpuPrecision::bf16;
      const index_t n = shape.n, o = shape.o, k = shape.k;
      CAPTURE(split);
      CAPTURE(n);
      CAPTURE(o);
      CAPTURE(k);
      const auto kernel = detail::amx_kernel<RegistersInMemory>(split);
      const auto x = random<float>(n * k, 12), w = random<float>(o * k, 13);
      const auto expected = product(as_factor(x, precision), as_factor(w, precision), n, o, k);
      std::vector<float> y(expected.size(), 9.0f);
      detail::gemm(backend, kernel, detail::Strided{x.data(), k, 1},
                   detail::Strided{w.data(), 1, k}, k, matrix(y, n, o), false);
      CHECK(difference(y, expected) <= 3e-5 * std::sqrt(double(k + 1)));
      const auto xt = transposed(x, n, k), wt = transposed(w, o, k);
      auto twice = y;
      detail::gemm(backend, kernel, detail::Strided{xt.data(), 1, n},
                   detail::Strided{wt.data(), o, 1}, k, matrix(twice, n, o), true);
      for (float& value : y) value *= 2;
      CHECK(difference(twice, y) <= 3e-5 * std::sqrt(double(k + 1)));

      const auto near = as_factor(x, CpuPrecision::bf16);
      const std::vector<bfloat16> stored(near.begin(), near.end());
      std::vector<float> from_float(y.size()), from_stored(y.size());
      const auto multiply = [&](const auto& rows, std::vector<float>& to) {
        detail::gemm(backend, kernel, detail::Strided{rows.data(), k, 1},
                     detail::Strided{w.data(), 1, k}, k, matrix(to, n, o), false);
      };
      multiply(near, from_float);
      multiply(stored, from_stored);
      CHECK(same_bits(from_float, from_stored));
    }
}

TEST_CASE("shapes that do not fit are refused") {
  CpuBackend<float> backend;
  std::vector<float> a(12), b(12), c(12);
  CHECK_THROWS_AS(linear(backend, matrix(a, 3, 4), matrix(b, 4, 3), matrix(c, 3, 4)), Error);
  CHECK_THROWS_AS(linear_backward_input(backend, matrix(a, 3, 4), matrix(b, 3, 4), matrix(c, 3, 4)),
                  Error);
  const auto frozen = freeze(backend, matrix(b, 4, 3));
  CHECK_THROWS_AS(linear(backend, matrix(a, 3, 4), frozen, matrix(c, 3, 4)), Error);
  CpuBackend<float> other(1, CpuPath::portable);
  if (backend.path() != CpuPath::portable)
    CHECK_THROWS_AS(linear(other, matrix(a, 4, 3), frozen, matrix(a, 4, 3)), Error);
}

}  // namespace gemm_test
