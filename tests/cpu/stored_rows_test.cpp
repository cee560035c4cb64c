// Rows in bfloat16, into operations and out of them.

#include "dflash/core/stored_rows.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/precisions.hpp"
#include "cpu/support.hpp"
#include "dflash/cpu.hpp"

namespace stored_rows_test {

using namespace dflash;
using namespace dflash_test;

std::vector<bfloat16> in_bfloat16(const std::vector<float>& x) {
  return std::vector<bfloat16>(x.begin(), x.end());
}

struct Shape {
  index_t n, o, k;
};
const Shape shapes[] = {{1, 1, 1},    {3, 5, 7},     {17, 33, 64},   {5, 40, 1030},
                        {64, 96, 32}, {70, 100, 50}, {40, 64, 1024}, {0, 4, 3},
                        {5, 6, 0},    {3, 20, 5000}, {9, 37, 5001}};

/// f(backend, n, o, k) for every way to compute a product, and every shape.
template <class F>
void each_product(F f) {
  for (const auto& [path, precision] : ways<float>())
    for (const auto& [n, o, k] : shapes) {
      CAPTURE(name_of(path));
      CAPTURE(name_of(precision));
      CAPTURE(n);
      CpuBackend<float> backend(2, path, precision);
      f(backend, n, o, k);
    }
}

TEST_CASE("products with rows in bfloat16 have the bits of those with their values in float") {
  each_product([](CpuBackend<float>& backend, index_t n, index_t o, index_t k) {
    const auto x = as_factor(random<float>(n * k, 10), CpuPrecision::bf16),
               dy = as_factor(random<float>(n * o, 12), CpuPrecision::bf16),
               w = random<float>(o * k, 11);
    const auto stored_x = in_bfloat16(x), stored_dy = in_bfloat16(dy);
    const auto rows = [&](const auto& values, index_t columns) {
      return InRows<float>(matrix(values, n, columns));
    };
    std::vector<float> y(at(n * o)), y_stored(at(n * o), 9.0f);
    linear(backend, rows(x, k), matrix(w, o, k), matrix(y, n, o));
    linear(backend, rows(stored_x, k), matrix(w, o, k), matrix(y_stored, n, o));
    CHECK(same_bits(y, y_stored));
    for (const Result result : {Result::written, Result::added}) {
      std::vector<float> dx(at(n * k), 3.0f), dx_stored = dx;
      linear_backward_input(backend, rows(dy, o), matrix(w, o, k), matrix(dx, n, k), result);
      linear_backward_input(backend, rows(stored_dy, o), matrix(w, o, k), matrix(dx_stored, n, k),
                            result);
      CHECK(same_bits(dx, dx_stored));
      const auto dw_of = [&](InRows<float> from_dy, InRows<float> from_x) {
        std::vector<float> dw(at(o * k), 3.0f);
        linear_backward_weight(backend, from_dy, from_x, matrix(dw, o, k), result);
        return dw;
      };
      const auto dw = dw_of(rows(dy, o), rows(x, k));
      CHECK(same_bits(dw, dw_of(rows(dy, o), rows(stored_x, k))));
      CHECK(same_bits(dw, dw_of(rows(stored_dy, o), rows(x, k))));
      CHECK(same_bits(dw, dw_of(rows(stored_dy, o), rows(stored_x, k))));
    }
  });
}

TEST_CASE("so have products with frozen weights, in float, in bfloat16 and in int8") {
  each_product([](CpuBackend<float>& backend, index_t n, index_t o, index_t k) {
    const auto x = as_factor(random<float>(n * k, 13), CpuPrecision::bf16),
               w = random<float>(o * k, 14);
    const auto stored_x = in_bfloat16(x), stored_w = in_bfloat16(w);
    const CpuBackend<float>::FrozenMatrix all_frozen[] = {freeze(backend, matrix(w, o, k)),
                                                          freeze(backend, matrix(stored_w, o, k)),
                                                          freeze_int8(backend, matrix(w, o, k))};
    for (const auto& frozen : all_frozen) {
      std::vector<float> y(at(n * o)), y_stored(at(n * o), 9.0f);
      linear(backend, matrix(x, n, k), frozen, matrix(y, n, o));
      linear(backend, matrix(stored_x, n, k), frozen, matrix(y_stored, n, o));
      CHECK(same_bits(y, y_stored));
    }
  });
}

TEST_CASE("rms norm and swiglu write their values in float, rounded, to rows in bfloat16") {
  for (const CpuPath path : cpu_paths())
    for (const index_t width : {1, 7, 32, 37, 300, 512, 1030}) {
      CAPTURE(name_of(path));
      CAPTURE(width);
      const index_t rows = 5, size = rows * width;
      CpuBackend<float> backend(1, path);
      const auto x = random<float>(size, 1), up = random<float>(size, 2),
                 dy = random<float>(size, 3), scale = random<float>(width, 4);
      std::vector<float> y(at(size)), other = y, rstd(at(rows));
      std::vector<bfloat16> y_stored(at(size)), other_stored = y_stored;
      const auto of = [&](auto& values) { return matrix(values, rows, width); };

      rms_norm(backend, of(x), flat(scale), 1e-6f, of(y), flat(rstd));
      rms_norm(backend, of(x), flat(scale), 1e-6f, of(y_stored), flat(rstd));
      CHECK(same_bits(y_stored, in_bfloat16(y)));

      swiglu(backend, of(x), of(up), of(y));
      swiglu(backend, of(x), of(up), of(y_stored));
      CHECK(same_bits(y_stored, in_bfloat16(y)));

      swiglu_backward(backend, of(x), of(up), of(dy), of(y), of(other));
      swiglu_backward(backend, of(x), of(up), of(dy), of(y_stored), of(other_stored));
      CHECK(same_bits(y_stored, in_bfloat16(y)));
      CHECK(same_bits(other_stored, in_bfloat16(other)));
      std::vector<float> wide(at(size));
      swiglu_backward(backend, of(x), of(up), of(dy), of(y_stored), of(wide));
      CHECK(same_bits(wide, other));
      swiglu_backward(backend, of(x), of(up), of(dy), of(wide), of(other_stored));
      CHECK(same_bits(wide, y));
    }
}

TEST_CASE("rms norm may write over what it reads") {
  for (const index_t width : {37, 512, 1030}) {
    CpuBackend<float> backend;
    auto x = random<float>(3 * width, 1);
    const auto scale = random<float>(width, 2);
    std::vector<float> y(x.size()), rstd(3);
    rms_norm(backend, matrix(x, 3, width), flat(scale), 1e-6f, matrix(y, 3, width), flat(rstd));
    rms_norm(backend, matrix(x, 3, width), flat(scale), 1e-6f, matrix(x, 3, width), flat(rstd));
    CHECK(same_bits(x, y));
  }
}

TEST_CASE("rows in bfloat16 begin at any element, and few may be far apart") {
  for (const auto& [path, precision] : ways<float>())
    for (const auto& [n, k, first] : {std::array<index_t, 3>{9, 64, 1}, {3, 1024, 0}}) {
      CAPTURE(name_of(path));
      CAPTURE(name_of(precision));
      const index_t o = 20;
      CpuBackend<float> backend(1, path, precision);
      const auto all = as_factor(random<float>(first + n * k, 1), CpuPrecision::bf16),
                 w = random<float>(o * k, 2);
      const auto stored = in_bfloat16(all);
      std::vector<float> y(at(n * o)), y_stored(at(n * o));
      linear(backend, View<const float, 2>{all.data() + first, {n, k}}, matrix(w, o, k),
             matrix(y, n, o));
      linear(backend, View<const bfloat16, 2>{stored.data() + first, {n, k}}, matrix(w, o, k),
             matrix(y_stored, n, o));
      CHECK(same_bits(y, y_stored));
    }
}

TEST_CASE("values are rounded to nearest even, whole vectors and what is left") {
  const float inf = std::numeric_limits<float>::infinity();
  // Halfway between two neighbours, once to either side, then what is no number or too large.
  const std::vector<float> special{1 + 0x1p-8f, 1 + 0x3p-8f, -1 - 0x1p-8f, inf, -inf, 0x1.ffp127f};
  std::vector<float> x;
  for (int i = 0; i < 45; ++i) x.push_back(special[std::size_t(i) % special.size()]);
  x.back() = std::numeric_limits<float>::quiet_NaN();
  for (const CpuPath path : cpu_paths()) {
    CAPTURE(name_of(path));
    std::vector<bfloat16> y(x.size());
    detail::store_values(path, x.data(), index_t(x.size()), y.data());
    const auto expected = in_bfloat16(x);
    CHECK(std::equal(y.begin(), y.end() - 1, expected.begin(),
                     [](bfloat16 a, bfloat16 b) { return a.bits == b.bits; }));
    CHECK(std::isnan(float(y.back())));
  }
}

TEST_CASE("rows in bfloat16 are copied and made read-only without a look at their type") {
  std::vector<bfloat16> values(6, bfloat16(1.5f));
  const StoredRows<float> rows(matrix(values, 2, 3));
  const StoredRows<float> same = rows;
  const StoredRows<const float> read_only = same;
  CHECK(same.narrow());
  CHECK(read_only.narrow());
  read_only.visit([&](const auto& view) { CHECK((const void*)view.data == values.data()); });
}

TEST_CASE("rows for products lie in bfloat16 where products round") {
  for (CpuPrecision precision : cpu_precisions.values()) {
    CpuBackend<float> backend(1, precision);
    const auto rows = rows_for_products(backend, 3, 4);
    CHECK(rows.rows().narrow() == (precision == CpuPrecision::bf16));
    CHECK(rows.size() == 12);
  }
  CpuBackend<double> wide;
  CHECK_FALSE(rows_for_products(wide, 3, 4).rows().narrow());
}

TEST_CASE("who needs float says so") {
  CpuBackend<float> backend(1, CpuPrecision::bf16);
  auto rows = rows_for_products(backend, 3, 4);
  CHECK_THROWS_AS((void)rows.rows().wide(), Error);
}

}  // namespace stored_rows_test
