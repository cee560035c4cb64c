#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/support.hpp"
#include "dflash/core/bfloat16.hpp"
#include "dflash/cpu.hpp"
#include "dflash/cpu/convert.hpp"

namespace operations_test {

using namespace dflash;
using namespace dflash_test;

using Doubles = std::vector<double>;

Doubles minus(const Doubles& a, const Doubles& b) {
  Doubles c(a);
  for (std::size_t i = 0; i < c.size(); ++i) c[i] -= b[i];
  return c;
}

const index_t widths[] = {1, 7, 16, 37, 130};

TEST_CASE_TEMPLATE("the exponential is within two units in the last place", T, float, double) {
  const double ulp = double(std::numeric_limits<T>::epsilon());
  for (CpuPath path : cpu_paths()) {
    std::vector<T> x, y(20007);
    const double limit = std::is_same_v<T, float> ? 87 : 708;
    for (int i = 0; i < 20007; ++i) x.push_back(T(limit * (i / 10003.0 - 1)));
    detail::on_path(
        path, [&]() __attribute__((always_inline)) {
          for (std::size_t i = 0; i < x.size(); ++i) y[i] = detail::exponential(x[i]);
        });
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double e = std::exp(double(x[i]));
      worst = std::max(worst, std::abs(double(y[i]) - e) / e);
    }
    CHECK(worst < 2 * ulp);
  }
  const T infinity = std::numeric_limits<T>::infinity();
  CHECK(detail::exponential(T(0)) == 1);
  CHECK(detail::exponential(-infinity) == 0);
  CHECK(detail::exponential(T(-1e5)) == 0);
  CHECK(detail::exponential(infinity) == infinity);
  CHECK(detail::exponential(T(1e5)) == infinity);
  for (const T nan : {std::numeric_limits<T>::quiet_NaN(), -std::numeric_limits<T>::quiet_NaN()})
    CHECK(std::isnan(detail::exponential(nan)));
}

TEST_CASE_TEMPLATE("powers of two are within two units in the last place, in vectors as alone", T,
                   float, double) {
  const T limit = std::is_same_v<T, float> ? 126 : 1022,
          infinity = std::numeric_limits<T>::infinity();
  for (CpuPath path : cpu_paths()) {
    std::vector<T> x, alone(20480);
    for (int i = 0; i < 20480; ++i) x.push_back(limit * T(i / 10240.0 - 1));
    detail::on_path(
        path, [&]() __attribute__((always_inline)) {
          for (std::size_t i = 0; i < x.size(); ++i) {
            T y = x[i];
            detail::power_of_two(y);
            alone[i] = y;
          }
        });
    std::vector<T> together = x;
    detail::on_vectors(
        path, [&](auto bytes) __attribute__((always_inline)) {
          using V = detail::Vector<T, bytes>;
          for (std::size_t i = 0; i < together.size(); i += V::lanes) {
            typename V::Register y = *(const typename V::Memory*)&together[i];
            detail::power_of_two(y);
            *(typename V::Memory*)&together[i] = y;
          }
        });
    CHECK(same_bits(alone, together));
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double e = std::exp2(double(x[i]));
      worst = std::max(worst, std::abs(double(alone[i]) - e) / e);
    }
    CHECK(worst < 2 * double(std::numeric_limits<T>::epsilon()));
  }
  const auto power = [](T x) {
    detail::power_of_two(x);
    return x;
  };
  CHECK(power(0) == 1);
  CHECK(power(-3) == T(0.125));
  CHECK(power(-infinity) == 0);
  CHECK(power(T(-1e5)) == 0);
  for (const T nan : {std::numeric_limits<T>::quiet_NaN(), -std::numeric_limits<T>::quiet_NaN()})
    CHECK(std::isnan(power(nan)));
}

TEST_CASE_TEMPLATE("elementwise and row operations do what they say", T, float, double) {
  for (int threads : {1, 3}) {
    CpuBackend<T> backend(threads);
    for (index_t rows : {0, 5, 900})
      for (index_t width : widths) {
        const auto x = random<T>(rows * width, 1), old = random<T>(rows * width, 2);
        const auto row = random<T>(width, 3), column = random<T>(rows, 4);
        auto sum = old, plus_row = old, scaled = old, filled = old;
        add(backend, matrix(x, rows, width), matrix(sum, rows, width));
        add_rows(backend, flat(row), matrix(plus_row, rows, width));
        scale_rows(backend, flat(column), matrix(scaled, rows, width));
        fill(backend, matrix(filled, rows, width), T(3));
        auto total = row;
        sum_rows(backend, matrix(x, rows, width), flat(total));
        bool right = true;
        Doubles expected(row.begin(), row.end());
        for (index_t n = 0; n < rows; ++n)
          for (index_t c = 0; c < width; ++c) {
            const std::size_t i = at(n * width + c);
            right = right && sum[i] == old[i] + x[i] && plus_row[i] == old[i] + row[at(c)] &&
                    scaled[i] == old[i] * column[at(n)] && filled[i] == 3;
            expected[at(c)] += double(x[i]);
          }
        CHECK(right);
        CHECK(difference(Doubles(total.begin(), total.end()), expected) <
              2000 * double(std::numeric_limits<T>::epsilon()));
      }
  }
}

TEST_CASE("rows are gathered and scattered, and ids checked") {
  CpuBackend<float> backend;
  const auto w = random<float>(10 * 3, 1);
  const std::vector<std::int32_t> ids = {4, 0, 9, 4}, distinct = {4, 0, 9, 1};
  std::vector<float> y(12), back(30, 7.f);
  gather_rows(backend, matrix(w, 10, 3), flat(ids), matrix(y, 4, 3));
  for (index_t n = 0; n < 4; ++n)
    for (index_t c = 0; c < 3; ++c)
      CHECK(y[at(n * 3 + c)] == w[at(std::int64_t(ids[at(n)]) * 3 + c)]);
  std::vector<bfloat16> narrow;
  for (const float value : w) narrow.emplace_back(value);
  std::vector<float> rounded(12);
  gather_rows(backend, matrix(narrow, 10, 3), flat(ids), matrix(rounded, 4, 3));
  for (std::size_t i = 0; i < y.size(); ++i) CHECK(rounded[i] == float(bfloat16(y[i])));
  scatter_rows(backend, matrix(y, 4, 3), flat(distinct), matrix(back, 10, 3));
  for (index_t n = 0; n < 4; ++n)
    CHECK(back[at(std::int64_t(distinct[at(n)]) * 3)] == y[at(n * 3)]);
  CHECK(back[6] == 7.f);
  for (std::int32_t bad : {-1, 10}) {
    const std::vector<std::int32_t> wrong = {0, bad, 0, 0};
    CHECK_THROWS_AS(gather_rows(backend, matrix(w, 10, 3), flat(wrong), matrix(y, 4, 3)), Error);
    CHECK_THROWS_AS(scatter_rows(backend, matrix(y, 4, 3), flat(wrong), matrix(back, 10, 3)),
                    Error);
  }
}

TEST_CASE("the first largest element of each row is found") {
  CpuBackend<float> backend;
  for (index_t width : {1, 5, 64, 200, 1000}) {
    auto x = random<float>(3 * width, 5);
    for (index_t place : {index_t(0), width / 2, width - 1}) {
      auto y = x;
      y[at(width + place)] = 50;
      y[at(2 * width - 1)] = 50;  // a twin behind it
      y[at(2 * width + place)] = -std::numeric_limits<float>::infinity();
      std::vector<std::int32_t> best(3);
      argmax_rows(backend, matrix(y, 3, width), flat(best));
      CHECK(best[1] == place);
      for (index_t n = 0; n < 3; ++n)
        CHECK(best[at(n)] == std::max_element(y.begin() + n * width, y.begin() + (n + 1) * width) -
                                 (y.begin() + n * width));
    }
  }
}

TEST_CASE("rms norm is the formula, its gradients are central differences and add") {
  for (CpuPath path : cpu_paths())
    for (index_t width : widths) {
      const index_t rows = 5;
      const double eps = 1e-5;
      CpuBackend<double> backend(1, path);
      auto x = random<double>(rows * width, 1), scale = random<double>(width, 2);
      const auto dy = random<double>(rows * width, 3), old_dx = random<double>(rows * width, 4),
                 old_dscale = random<double>(width, 5);
      Doubles y(x.size()), rstd(at(rows));
      const auto forward = [&] {
        rms_norm(backend, matrix(x, rows, width), flat(scale), eps, matrix(y, rows, width),
                 flat(rstd));
      };
      forward();
      for (index_t n = 0; n < rows; ++n) {
        double sum = 0;
        for (index_t c = 0; c < width; ++c) sum += x[at(n * width + c)] * x[at(n * width + c)];
        const double r = 1 / std::sqrt(sum / double(width) + eps);
        CHECK(rstd[at(n)] == doctest::Approx(r).epsilon(1e-14));
        for (index_t c = 0; c < width; ++c)
          CHECK(y[at(n * width + c)] ==
                doctest::Approx(x[at(n * width + c)] * r * scale[at(c)]).epsilon(1e-14));
      }
      auto dx = old_dx, dscale = old_dscale;
      rms_norm_backward(backend, matrix(x, rows, width), flat(scale), flat(rstd),
                        matrix(dy, rows, width), matrix(dx, rows, width), flat(dscale));
      const auto loss = [&] {
        forward();
        return dot(y, dy);
      };
      CHECK(gradient_error(x, minus(dx, old_dx), loss) < 1e-6);
      CHECK(gradient_error(scale, minus(dscale, old_dscale), loss) < 1e-6);
    }
}

TEST_CASE("rope turns by position times frequency, backward turns back") {
  CpuBackend<double> backend;
  const std::vector<index_t> position = {0, 3, 40000};
  const std::vector<double> frequency = {1, 0.1, 0.003};
  const double factor = 1.25;
  Doubles cosine(9), sine(9);
  rope_table(backend, flat(position), flat(frequency), factor, matrix(cosine, 3, 3),
             matrix(sine, 3, 3));
  for (index_t n = 0; n < 3; ++n)
    for (index_t i = 0; i < 3; ++i) {
      CHECK(cosine[at(n * 3 + i)] == factor * std::cos(double(position[at(n)]) * frequency[at(i)]));
      CHECK(sine[at(n * 3 + i)] == factor * std::sin(double(position[at(n)]) * frequency[at(i)]));
    }
  for (index_t dim : {6, 8}) {  // the second with two elements that do not turn
    const auto x = random<double>(3 * 2 * dim, 1);
    auto y = x;
    const View<double, 3> heads{y.data(), {3, 2, dim}};
    rope(backend, matrix(cosine, 3, 3), matrix(sine, 3, 3), Rotate::forward, heads);
    for (index_t n = 0; n < 3; ++n)
      for (index_t h = 0; h < 2; ++h)
        for (index_t i = 0; i < dim; ++i) {
          const index_t row = (n * 2 + h) * dim, j = i % 3;
          const double c = cosine[at(n * 3 + j)], s = sine[at(n * 3 + j)];
          const double a = x[at(row + j)], b = x[at(row + j + 3)];
          const double expected = i < 3 ? a * c - b * s : i < 6 ? b * c + a * s : x[at(row + i)];
          CHECK(heads(n, h, i) == doctest::Approx(expected).epsilon(1e-14));
        }
    // Backward is the transpose: <rope(x), z> = <x, backward(z)>.
    const auto z = random<double>(3 * 2 * dim, 2);
    auto back = z;
    rope(backend, matrix(cosine, 3, 3), matrix(sine, 3, 3), Rotate::backward,
         View<double, 3>{back.data(), {3, 2, dim}});
    CHECK(dot(y, z) == doctest::Approx(dot(x, back)).epsilon(1e-13));
  }
}

TEST_CASE_TEMPLATE("a step of AdamW is the textbook's", T, float, double) {
  for (CpuPath path : cpu_paths()) {
    CpuBackend<T> backend(2, path);
    const index_t size = 1003;
    auto weight = random<T>(size, 1), m = random<T>(size, 2), v = random<T>(size, 3);
    for (T& x : v) x = std::abs(x);
    Doubles w(weight.begin(), weight.end()), first(m.begin(), m.end()), second(v.begin(), v.end());
    for (int t = 1; t <= 3; ++t) {
      const auto g = random<T>(size, std::uint64_t(10 + t));
      const AdamWStep step{
          1e-2, 0.9, 0.95, 1e-8, 0.1, 0.25, 1 - std::pow(0.9, t), 1 - std::pow(0.95, t)};
      adamw(backend, flat(g), step, flat(weight), flat(m), flat(v));
      for (std::size_t i = 0; i < w.size(); ++i) {
        const double scaled = double(g[i]) * 0.25;
        w[i] *= 1 - 1e-2 * 0.1;
        first[i] = 0.9 * first[i] + 0.1 * scaled;
        second[i] = 0.95 * second[i] + 0.05 * scaled * scaled;
        w[i] -= 1e-2 / step.correction1 * first[i] /
                (std::sqrt(second[i]) / std::sqrt(step.correction2) + 1e-8);
      }
    }
    const double tolerance = 40 * double(std::numeric_limits<T>::epsilon());
    CHECK(difference(Doubles(weight.begin(), weight.end()), w) < tolerance);
    CHECK(difference(Doubles(m.begin(), m.end()), first) < tolerance);
    CHECK(difference(Doubles(v.begin(), v.end()), second) < tolerance);
  }
}

TEST_CASE("sums of squares are right and the same on any number of threads") {
  CpuBackend<float> one, three(3);
  for (index_t size : {0, 1, 33, 1 << 20}) {
    const auto x = random<float>(size, 1);
    double expected = 0;
    for (float v : x) expected += double(v) * double(v);
    const double sum = sum_of_squares(one, flat(x));
    CHECK(sum == doctest::Approx(expected).epsilon(1e-12));
    CHECK(sum == sum_of_squares(three, flat(x)));
  }
}

TEST_CASE_TEMPLATE("the bits of a row depend on neither place nor threads", T, float, double) {
  for (CpuPath path : cpu_paths())
    for (index_t width : {7, 37, 64}) {
      const index_t rows = 20000 / width;
      CpuBackend<T> one(1, path), three(3, path);
      const auto x = random<T>(rows * width, 1), z = random<T>(rows * width, 2),
                 scale = random<T>(width, 3);
      // All operations on rows, one after the other.
      const auto run = [&](CpuBackend<T>& backend, Range r, std::vector<T>& out,
                           std::vector<T>& sums) {
        const index_t n = r.size();
        const auto some_x = matrix(x, rows, width).rows(r), some_z = matrix(z, rows, width).rows(r);
        std::vector<T> y(at(n * width)), rstd(at(n)), dx(at(n * width), T(1)), dup = dx;
        sums.assign(at(width), T(0));
        rms_norm(backend, some_x, flat(scale), T(1e-6), matrix(y, n, width), flat(rstd));
        swiglu(backend, matrix(y, n, width), some_z, matrix(y, n, width));
        rms_norm_backward(backend, some_x, flat(scale), flat(rstd), matrix(y, n, width),
                          matrix(dx, n, width), flat(sums));
        swiglu_backward(backend, matrix(dx, n, width), some_z, some_x, matrix(y, n, width),
                        matrix(dup, n, width));
        out = dx;
        for (std::size_t i = 0; i < out.size(); ++i) out[i] += y[i] * dup[i];
      };
      std::vector<T> all, part, sums, other;
      run(one, {0, rows}, all, sums);
      run(three, {0, rows}, part, other);
      CHECK(same_bits(all, part));
      CHECK(same_bits(sums, other));
      for (index_t begin : {1, 2, 13, 100})
        for (index_t n : {1, 2, 9}) {
          run(one, {begin, begin + n}, part, other);
          CHECK(std::memcmp(part.data(), &all[at(begin * width)], at(n * width) * sizeof(T)) == 0);
        }
    }
}

TEST_CASE("columns, parts of attention and conversions are right on any number of threads") {
  const index_t rows = 2000, heads = 4, dim = 70, width = heads * dim, first = dim;
  const auto x = random<float>(rows * width, 1), part = random<float>(rows * 2 * dim, 2),
             part_lse = random<float>(rows * 2, 3), some_lse = random<float>(rows * heads, 4);
  std::vector<std::vector<float>> results;
  for (int threads : {1, 3}) {
    CpuBackend<float> backend(threads);
    std::vector<float> some(at(rows * 2 * dim)), sum = x, y = x, lse = some_lse, narrow_again(x);
    copy_columns(backend, matrix(x, rows, width), first, matrix(some, rows, 2 * dim));
    add_columns(backend, matrix(part, rows, 2 * dim), first, matrix(sum, rows, width));
    merge_attention(backend, View<const float, 3>{part.data(), {rows, 2, dim}},
                    matrix(part_lse, rows, 2), 1, View<float, 3>{y.data(), {rows, heads, dim}},
                    matrix(lse, rows, heads));
    std::vector<bfloat16> narrow(x.size());
    const View<bfloat16, 1> there{narrow.data(), {rows * width}};
    convert(backend, flat(x), there);
    convert(backend, View<const bfloat16, 1>(there), flat(narrow_again));
    double worst = 0;
    for (index_t n = 0; n < rows; ++n)
      for (index_t c = 0; c < width; ++c) {
        const index_t i = n * width + c, j = n * 2 * dim + c - first, h = c / dim;
        const bool inside = c >= first && c < first + 2 * dim;
        worst = std::max(worst, inside ? std::abs(double(some[at(j)]) - double(x[at(i)])) : 0);
        const double added = inside ? double(x[at(i)] + part[at(j)]) : double(x[at(i)]);
        worst = std::max(worst, std::abs(double(sum[at(i)]) - added));
        double merged = double(x[at(i)]);
        if (inside) {
          const double a = std::exp(double(some_lse[at(n * heads + h)])),
                       b = std::exp(double(part_lse[at(n * 2 + h - 1)]));
          merged = (a * merged + b * double(part[at(j)])) / (a + b);
        }
        worst = std::max(worst, std::abs(double(y[at(i)]) - merged));
        worst = std::max(worst,
                         std::abs(double(narrow_again[at(i)]) - double(float(bfloat16(x[at(i)])))));
      }
    CHECK(worst < 1e-6);
    y.insert(y.end(), lse.begin(), lse.end());
    y.insert(y.end(), sum.begin(), sum.end());
    results.push_back(y);
  }
  CHECK(same_bits(results[0], results[1]));
}

}  // namespace operations_test
