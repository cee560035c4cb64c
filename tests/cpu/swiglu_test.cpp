#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "cpu/support.hpp"
#include "dflash/cpu.hpp"

namespace swiglu_test {

using namespace dflash;
using namespace dflash_test;

TEST_CASE("swiglu is the formula, its gradients are central differences") {
  for (CpuPath path : cpu_paths())
    for (index_t width : {1, 7, 16, 37, 130}) {
      const index_t rows = 3, size = rows * width;
      CpuBackend<double> backend(1, path);
      auto gate = random<double>(size, 1), up = random<double>(size, 2);
      const auto dy = random<double>(size, 3);
      std::vector<double> y(at(size)), dgate(at(size), 7), dup = dgate;
      const auto forward = [&] {
        swiglu(backend, matrix(gate, rows, width), matrix(up, rows, width), matrix(y, rows, width));
      };
      forward();
      for (std::size_t i = 0; i < y.size(); ++i)
        CHECK(y[i] == doctest::Approx(gate[i] / (1 + std::exp(-gate[i])) * up[i]).epsilon(1e-14));
      swiglu_backward(backend, matrix(gate, rows, width), matrix(up, rows, width),
                      matrix(dy, rows, width), matrix(dgate, rows, width),
                      matrix(dup, rows, width));
      const auto loss = [&] {
        forward();
        return dot(y, dy);
      };
      CHECK(gradient_error(gate, dgate, loss) < 1e-7);
      CHECK(gradient_error(up, dup, loss) < 1e-7);
    }
}

TEST_CASE("swiglu stays finite at both ends") {
  CpuBackend<float> backend;
  std::vector<float> gate = {-1000, -90, 0, 90, 1000}, up(5, 1.f), y(5), dg(5), du(5);
  swiglu(backend, matrix(gate, 1, 5), matrix(up, 1, 5), matrix(y, 1, 5));
  swiglu_backward(backend, matrix(gate, 1, 5), matrix(up, 1, 5), matrix(up, 1, 5), matrix(dg, 1, 5),
                  matrix(du, 1, 5));
  CHECK(std::abs(y[0]) < 1e-30f);
  CHECK(y[4] == 1000);
  for (float v : dg) CHECK(std::isfinite(v));
  for (float v : du) CHECK(std::isfinite(v));
}

}  // namespace swiglu_test
