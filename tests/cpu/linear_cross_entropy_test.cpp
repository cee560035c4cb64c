#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/precisions.hpp"
#include "cpu/support.hpp"
#include "dflash/cpu.hpp"

namespace linear_cross_entropy_test {

using namespace dflash;
using namespace dflash_test;

template <class T>
struct Head {
  index_t rows, width, words;
  std::vector<T> x, w, nll, dx;
  std::vector<std::int32_t> label;
  std::vector<std::uint8_t> correct;

  Head(index_t rows_, index_t width_, index_t words_, double scale = 1)
      : rows(rows_), width(width_), words(words_) {
    x = random<T>(rows * width, 1);
    w = random<T>(words * width, 2);
    for (T& v : x) v *= T(scale);
    const Random numbers(3);
    for (index_t n = 0; n < rows; ++n)
      label.push_back(std::int32_t(numbers.integer(std::uint64_t(n)) % std::uint64_t(words)));
    nll.assign(at(rows), T(5));
    dx.assign(x.size(), T(5));
    correct.assign(at(rows), 7);
  }
  void run(CpuBackend<T>& backend) { run(backend, matrix(w, words, width)); }
  void run(CpuBackend<T>& backend, const StoredRows<const T>& head) {
    linear_cross_entropy(backend, matrix(x, rows, width), head,
                         View<const std::int32_t, 1>{label.data(), {rows}}, flat(nll),
                         flat(correct), matrix(dx, rows, width));
  }
  /// Formulas as they stand, in double, of rounded factors.
  void check(double tolerance, double gradient_tolerance,
             CpuPrecision precision = CpuPrecision::fp32) {
    const auto fx = as_factor(x, precision), fw = as_factor(w, precision);
    for (index_t n = 0; n < rows; ++n) {
      std::vector<double> logit;
      double top = -INFINITY, sum = 0;
      index_t best = 0;
      for (index_t v = 0; v < words; ++v) {
        double s = 0;
        for (index_t c = 0; c < width; ++c)
          s += double(fx[at(n * width + c)]) * double(fw[at(v * width + c)]);
        logit.push_back(s);
        if (s > top) top = s, best = v;
      }
      for (double s : logit) sum += std::exp(s - top);
      const auto l = label[at(n)];
      CHECK(std::abs(nll[at(n)] - (std::log(sum) + top - logit[at(l)])) <
            tolerance * (1 + std::abs(top)));
      CHECK(correct[at(n)] == (best == l));
      for (index_t c = 0; c < width; ++c) {
        double d = -double(w[at(l * width + c)]);
        for (index_t v = 0; v < words; ++v)
          d += std::exp(logit[at(v)] - top) / sum * double(fw[at(v * width + c)]);
        CHECK(std::abs(double(dx[at(n * width + c)]) - d) < gradient_tolerance);
      }
    }
  }
};

TEST_CASE_TEMPLATE("cross entropy is the formula, for any size", T, float, double) {
  for (const auto& [path, precision] : ways<T>())
    for (auto [rows, width, words] :
         {std::array<index_t, 3>{1, 3, 2}, {5, 16, 50}, {7, 33, 1300}, {130, 8, 70}, {3, 40, 1}}) {
      CAPTURE(name_of(path));
      CAPTURE(name_of(precision));
      Head<T> head(rows, width, words);
      CpuBackend<T> backend(1, path, precision);
      head.run(backend);
      const bool split = precision == CpuPrecision::bf16x3;
      const double tolerance = std::is_same_v<T, double> ? 1e-14 : split ? 2e-5 : 2e-6;
      // Probabilities are factors as well; of each bfloat16 keeps 2^-9.
      head.check(tolerance, precision == CpuPrecision::bf16 ? 0.01 : 20 * tolerance, precision);
    }
}

TEST_CASE("a head in bfloat16 gives the bits of its values in float") {
  for (const auto& [path, precision] : ways<float>())
    for (auto [rows, width, words] :
         {std::array<index_t, 3>{5, 16, 50}, {7, 33, 1300}, {130, 8, 70}, {3, 1500, 600}}) {
      CAPTURE(name_of(path));
      CAPTURE(name_of(precision));
      Head<float> wide(rows, width, words);
      const std::vector<bfloat16> stored(wide.w.begin(), wide.w.end());
      wide.w = as_factor(wide.w, CpuPrecision::bf16);
      auto narrow = wide;
      CpuBackend<float> one(1, path, precision), two(2, path, precision);
      wide.run(one);
      narrow.run(two, matrix(stored, words, width));
      CHECK(same_bits(wide.dx, narrow.dx));
      CHECK(same_bits(wide.nll, narrow.nll));
      CHECK(wide.correct == narrow.correct);
    }
}

TEST_CASE("its gradient is the central difference") {
  Head<double> head(4, 12, 700);
  CpuBackend<double> backend;
  head.run(backend);
  const auto gradient = head.dx;
  CHECK(gradient_error(head.x, gradient, [&] {
          head.run(backend);
          double sum = 0;
          for (double v : head.nll) sum += v;
          return sum;
        }) < 1e-7);
}

TEST_CASE("large logits do not overflow") {
  Head<float> head(6, 30, 900, 40);
  CpuBackend<float> backend;
  head.run(backend);
  for (float v : head.nll) CHECK(std::isfinite(v));
  for (float v : head.dx) CHECK(std::isfinite(v));
}

TEST_CASE("of equal logits the first counts as the largest") {
  CpuBackend<float> backend;
  for (index_t twin : {3, 100, 899}) {
    Head<float> head(2, 8, 900);
    std::fill(head.w.begin(), head.w.end(), 0.0f);
    for (index_t c = 0; c < 8; ++c)
      head.w[at(2 * 8 + c)] = head.w[at(twin * 8 + c)] = head.x[at(c)],
                        head.x[at(8 + c)] = head.x[at(c)];
    head.label = {2, std::int32_t(twin)};
    head.run(backend);
    CHECK(head.correct[0] == 1);
    CHECK(head.correct[1] == 0);
  }
}

TEST_CASE_TEMPLATE("a row's bits do not depend on other rows or threads", T, float, double) {
  for (CpuPath path : cpu_paths()) {
    Head<T> head(200, 24, 1500);
    CpuBackend<T> one(1, path), three(3, path);
    head.run(one);
    auto other = head;
    other.run(three);
    CHECK(same_bits(head.dx, other.dx));
    CHECK(same_bits(head.nll, other.nll));
    for (index_t begin : {0, 13, 150}) {
      Head<T> part(7, 24, 1500);
      part.x.assign(head.x.begin() + begin * 24, head.x.begin() + (begin + 7) * 24);
      part.label.assign(head.label.begin() + begin, head.label.begin() + begin + 7);
      part.run(one);
      CHECK(std::memcmp(part.dx.data(), &head.dx[at(begin * 24)], sizeof(T) * 7 * 24) == 0);
      CHECK(std::memcmp(part.nll.data(), &head.nll[at(begin)], sizeof(T) * 7) == 0);
    }
  }
}

TEST_CASE("no rows are fine, a label outside the vocabulary is refused") {
  CpuBackend<float> backend;
  Head<float> none(0, 8, 10);
  none.run(backend);
  for (std::int32_t bad : {-1, 10}) {
    Head<float> head(3, 8, 10);
    head.label[1] = bad;
    CHECK_THROWS_AS(head.run(backend), Error);
  }
}

}  // namespace linear_cross_entropy_test
