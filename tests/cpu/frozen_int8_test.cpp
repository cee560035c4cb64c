#include "dflash/cpu/frozen_int8.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "cpu/support.hpp"
#include "dflash/cpu.hpp"

namespace frozen_int8_test {

using namespace dflash;
using namespace dflash_test;

/// Each row in whole multiples of a 127th of its largest number.
std::vector<float> rounded(const std::vector<float>& w, index_t rows, index_t k) {
  std::vector<float> to(w.size());
  for (index_t n = 0; n < rows; ++n) {
    float most = 0;
    for (index_t i = 0; i < k; ++i) most = std::max(most, std::abs(w[at(n * k + i)]));
    const float scale = most / 127;
    for (index_t i = 0; i < k; ++i)
      to[at(n * k + i)] = scale > 0 ? std::nearbyint(w[at(n * k + i)] / scale) * scale : 0;
  }
  return to;
}

std::vector<float> product(CpuBackend<float>& backend, const std::vector<float>& x, index_t rows,
                           const CpuBackend<float>::FrozenMatrix& w) {
  std::vector<float> y(at(rows * w.rows));
  linear(backend, matrix(x, rows, w.columns), w, matrix(y, rows, w.rows));
  return y;
}

struct Shape {
  index_t rows, outputs, k;
};
const Shape shapes[] = {{1, 1, 1},    {2, 5, 3},    {9, 33, 6},     {3, 64, 512},
                        {20, 70, 37}, {5, 16, 515}, {1, 300, 1030}, {2, 3, 8200}};

TEST_CASE("products are those of the rounded weights, on every path and for any shape") {
  for (const CpuPath path : cpu_paths())
    for (const Shape& s : shapes) {
      CAPTURE(name_of(path));
      CAPTURE(s.k);
      CpuBackend<float> backend(2, path);
      const auto x = random<float>(s.rows * s.k, 1), w = random<float>(s.outputs * s.k, 2);
      const auto near = rounded(w, s.outputs, s.k);
      const auto y = product(backend, x, s.rows, freeze_int8(backend, matrix(w, s.outputs, s.k)));
      double worst = 0;
      for (index_t n = 0; n < s.rows; ++n)
        for (index_t o = 0; o < s.outputs; ++o) {
          double sum = 0, size = 0;
          for (index_t i = 0; i < s.k; ++i) {
            const double term = double(x[at(n * s.k + i)]) * double(near[at(o * s.k + i)]);
            sum += term, size += std::abs(term);
          }
          worst =
              std::max(worst, std::abs(double(y[at(n * s.outputs + o)]) - sum) / (size + 1e-30));
        }
      CHECK(worst < 3e-6);
    }
}

TEST_CASE("a row has the same bits alone and among others, on any number of threads") {
  for (const CpuPath path : cpu_paths())
    for (const Shape& s : shapes) {
      CAPTURE(name_of(path));
      CpuBackend<float> one(1, path), three(3, path);
      const auto x = random<float>(s.rows * s.k, 3), w = random<float>(s.outputs * s.k, 4);
      const auto frozen = freeze_int8(one, matrix(w, s.outputs, s.k));
      const auto all = product(one, x, s.rows, frozen);
      CHECK(all == product(three, x, s.rows, frozen));
      std::vector<float> rows;
      for (index_t n = 0; n < s.rows; ++n) {
        const std::vector<float> row(x.begin() + n * s.k, x.begin() + (n + 1) * s.k);
        const auto y = product(one, row, 1, frozen);
        rows.insert(rows.end(), y.begin(), y.end());
      }
      CHECK(all == rows);
    }
}

TEST_CASE("a row of zeros gives zeros, and the largest number of a row is exact") {
  CpuBackend<float> backend;
  std::vector<float> w(2 * 8, 0.f), x(8, 0.f);
  w[8 + 5] = -3, w[8 + 1] = 1;
  x[5] = 2;
  const auto y = product(backend, x, 1, freeze_int8(backend, matrix(w, 2, 8)));
  CHECK(y[0] == 0);
  CHECK(y[1] == doctest::Approx(-6).epsilon(1e-6));
}

}  // namespace frozen_int8_test
