// Rows in bfloat16, into operations and out of them.

#include "dflash/core/stored_rows.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "cpu/precisions.hpp"
#include "cpu/support.hpp"
#include "dflash/cpu.hpp"

namespace stored_rows_test {

using namespace dflash;
using namespace dflash_test;

std::vector<bfloat16> in_bfloat16(const std::vector<float>& x) {
  std::vector<bfloat16> values;
  for (const float value : x) values.push_back(bfloat16(value));
  return values;
}

struct Shape {
  index_t n, o, k;
};
const Shape shapes[] = {{1, 1, 1},     {3, 5, 7},      {17, 33, 64}, {5, 40, 1030}, {64, 96, 32},
                        {70, 100, 50}, {40, 64, 1024}, {0, 4, 3},    {5, 6, 0}};

TEST_CASE("products with rows in bfloat16 have the bits of those with their values in float") {
  for (const auto& [path, precision] : ways<float>())
    for (const auto& [n, o, k] : shapes) {
      CAPTURE(name_of(path));
      CAPTURE(name_of(precision));
      CAPTURE(n);
      CpuBackend<float> backend(2, path, precision);
      const auto x = as_factor(random<float>(n * k, 10), CpuPrecision::bf16),
                 dy = as_factor(random<float>(n * o, 12), CpuPrecision::bf16),
                 w = random<float>(o * k, 11);
      const auto stored_x = in_bfloat16(x), stored_dy = in_bfloat16(dy);
      const auto wide = [&](const auto& values, index_t columns) {
        return InRows<float>(matrix(values, n, columns));
      };
      std::vector<float> y(at(n * o)), y_stored(at(n * o), 9.0f);
      linear(backend, wide(x, k), matrix(w, o, k), matrix(y, n, o));
      linear(backend, wide(stored_x, k), matrix(w, o, k), matrix(y_stored, n, o));
      CHECK(same_bits(y, y_stored));
      for (const Result result : {Result::written, Result::added}) {
        std::vector<float> dx(at(n * k), 3.0f), dx_stored = dx;
        linear_backward_input(backend, wide(dy, o), matrix(w, o, k), matrix(dx, n, k), result);
        linear_backward_input(backend, wide(stored_dy, o), matrix(w, o, k), matrix(dx_stored, n, k),
                              result);
        CHECK(same_bits(dx, dx_stored));
        const auto dw_of = [&](InRows<float> from_dy, InRows<float> from_x) {
          std::vector<float> dw(at(o * k), 3.0f);
          linear_backward_weight(backend, from_dy, from_x, matrix(dw, o, k), result);
          return dw;
        };
        const auto dw = dw_of(wide(dy, o), wide(x, k));
        CHECK(same_bits(dw, dw_of(wide(dy, o), wide(stored_x, k))));
        CHECK(same_bits(dw, dw_of(wide(stored_dy, o), wide(x, k))));
        CHECK(same_bits(dw, dw_of(wide(stored_dy, o), wide(stored_x, k))));
      }
    }
}

TEST_CASE("rms norm and swiglu write their values in float, rounded, to rows in bfloat16") {
  for (const CpuPath path : cpu_paths())
    for (const index_t width : {1, 7, 32, 37, 300}) {
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
    }
}

TEST_CASE("rows for products lie in bfloat16 where products round") {
  for (const auto precision : all_cpu_precisions) {
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
