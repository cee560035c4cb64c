#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu/precisions.hpp"
#include "cpu/support.hpp"
#include "dflash/cpu.hpp"

namespace linear_cross_entropy_part_test {

using namespace dflash;
using namespace dflash_test;

template <class T>
using Parts = std::vector<CrossEntropyPart<T>>;

template <class T>
struct Head {
  index_t rows, width, words;
  std::vector<T> x, w;
  std::vector<std::int32_t> label;

  Head(index_t rows_, index_t width_, index_t words_)
      : rows(rows_),
        width(width_),
        words(words_),
        x(random<T>(rows * width, 1)),
        w(random<T>(words * width, 2)) {
    const Random numbers(3);
    for (index_t n = 0; n < rows; ++n)
      label.push_back(std::int32_t(numbers.integer(std::uint64_t(n)) % std::uint64_t(words)));
  }
  View<const T, 2> words_of(Range range) const { return matrix(w, words, width).rows(range); }
  std::vector<std::int32_t> labels_from(index_t first) const {
    std::vector<std::int32_t> shifted;
    for (const std::int32_t l : label) shifted.push_back(std::int32_t(l - first));
    return shifted;
  }
  Parts<T> run(CpuBackend<T>& backend, Range range, std::vector<T>& dx) const {
    Parts<T> parts(at(rows), {5, 5, 5, 5});
    dx.assign(x.size(), T(5));
    const auto labels = labels_from(range.begin);
    linear_cross_entropy_part(backend, matrix(x, rows, width), words_of(range), flat(labels),
                              flat(parts), matrix(dx, rows, width));
    return parts;
  }
};

TEST_CASE_TEMPLATE("a part says what its logits are", T, float, double) {
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-13;
  for (const CpuPath path : cpu_paths()) {
    const Head<T> head(23, 9, 1300);
    CpuBackend<T> backend(1, path);
    std::vector<T> dx;
    const Range range{600, 1290};
    const auto parts = head.run(backend, range, dx);
    index_t elsewhere = 0;
    for (index_t n = 0; n < head.rows; ++n) {
      std::vector<double> logit;
      for (index_t v = range.begin; v < range.end; ++v) {
        double s = 0;
        for (index_t c = 0; c < head.width; ++c)
          s += double(head.x[at(n * head.width + c)]) * double(head.w[at(v * head.width + c)]);
        logit.push_back(s);
      }
      const auto top = std::max_element(logit.begin(), logit.end());
      const auto& part = parts[at(n)];
      CHECK(part.best == top - logit.begin());
      CHECK(std::abs(double(part.top) - *top) < tolerance * 10);
      double sum = 0;
      std::vector<double> gradient(at(head.width));
      const index_t label = head.label[at(n)] - range.begin;
      for (std::size_t v = 0; v < logit.size(); ++v) {
        const double e = std::exp(logit[v] - *top);
        sum += e;
        if (index_t(v) == label) continue;
        for (std::size_t c = 0; c < gradient.size(); ++c)
          gradient[c] += e * double(head.w[(v + 600) * gradient.size() + c]);
      }
      CHECK(std::abs(double(part.sum) - sum) < tolerance * 10 * sum);
      for (std::size_t c = 0; c < gradient.size(); ++c)
        CHECK(std::abs(double(dx[at(n) * gradient.size() + c]) - gradient[c]) <
              tolerance * 10 * sum);
      if (label >= 0 && label < range.size())
        CHECK(std::abs(double(part.label_logit) - logit[at(label)]) < tolerance * 10);
      else
        ++elsewhere;
    }
    CHECK(elsewhere > 0);
  }
}

TEST_CASE_TEMPLATE("parts of the vocabulary join to the whole", T, float, double) {
  const Head<T> head(31, 12, 700);
  CpuBackend<T> backend;
  std::vector<T> nll(at(head.rows)), whole(head.x.size());
  std::vector<std::uint8_t> correct(at(head.rows));
  linear_cross_entropy(backend, matrix(head.x, head.rows, head.width),
                       head.words_of({0, head.words}), flat(std::as_const(head.label)), flat(nll),
                       flat(correct), matrix(whole, head.rows, head.width));
  const Range ranges[] = {{0, 1}, {1, 400}, {400, 400}, {400, 700}};
  std::vector<Parts<T>> parts;
  std::vector<std::vector<T>> gradients(4);
  for (std::size_t p = 0; p < 4; ++p) parts.push_back(head.run(backend, ranges[p], gradients[p]));
  std::vector<T> sum(head.x.size());
  for (std::size_t p = 0; p < 4; ++p) {
    std::vector<T> scale, label_share;
    for (std::size_t n = 0; n < parts[0].size(); ++n) {
      double top = -INFINITY, all = 0;
      for (const auto& part : parts) top = std::max(top, double(part[n].top));
      for (const auto& part : parts)
        all += double(part[n].sum) * std::exp(double(part[n].top) - top);
      scale.push_back(T(std::exp(double(parts[p][n].top) - top) / all));
      label_share.push_back(T(std::expm1(-double(nll[n]))));
    }
    const auto labels = head.labels_from(ranges[p].begin);
    linear_cross_entropy_merge(backend, head.words_of(ranges[p]), flat(labels),
                               flat(std::as_const(scale)), flat(std::as_const(label_share)),
                               matrix(gradients[p], head.rows, head.width));
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += gradients[p][i];
  }
  CHECK(difference(sum, whole) < (std::is_same_v<T, float> ? 1e-5 : 1e-13));
}

TEST_CASE("a part in bfloat16 gives the bits of its values in float") {
  Head<float> head(31, 12, 700);
  const std::vector<bfloat16> stored(head.w.begin(), head.w.end());
  head.w = as_factor(head.w, CpuPrecision::bf16);
  const Range range{50, 650};
  const auto labels = head.labels_from(range.begin);
  const auto words = StoredRows<const float>(matrix(stored, head.words, head.width)).rows(range);
  CpuBackend<float> backend;
  std::vector<float> wide, narrow(head.x.size()), scale(at(head.rows), 0.25f),
      label_share(at(head.rows), -0.75f);
  const auto expected = head.run(backend, range, wide);
  Parts<float> parts(expected.size());
  linear_cross_entropy_part(backend, matrix(head.x, head.rows, head.width), words, flat(labels),
                            flat(parts), matrix(narrow, head.rows, head.width));
  CHECK(same_bits(narrow, wide));
  for (std::size_t n = 0; n < parts.size(); ++n) CHECK(parts[n].sum == expected[n].sum);
  linear_cross_entropy_merge(backend, head.words_of(range), flat(labels),
                             flat(std::as_const(scale)), flat(std::as_const(label_share)),
                             matrix(wide, head.rows, head.width));
  linear_cross_entropy_merge(backend, words, flat(labels), flat(std::as_const(scale)),
                             flat(std::as_const(label_share)),
                             matrix(narrow, head.rows, head.width));
  CHECK(same_bits(narrow, wide));
}

TEST_CASE("no words at all say nothing") {
  const Head<float> head(3, 4, 10);
  CpuBackend<float> backend;
  std::vector<float> dx;
  for (const auto& part : head.run(backend, {10, 10}, dx)) {
    CHECK(part.top == -INFINITY);
    CHECK(part.sum == 0);
  }
  CHECK(dx == std::vector<float>(12, 0.0f));
}

TEST_CASE("a row's part has the same bits beside any other rows") {
  const Head<float> head(150, 20, 900);
  CpuBackend<float> one(1), three(3);
  std::vector<float> dx, others, few;
  const auto parts = head.run(one, {50, 850}, dx);
  head.run(three, {50, 850}, others);
  CHECK(same_bits(dx, others));
  Head<float> some = head;
  some.rows = 6;
  some.x.assign(head.x.begin() + 77 * 20, head.x.begin() + 83 * 20);
  some.label.assign(head.label.begin() + 77, head.label.begin() + 83);
  const auto some_parts = some.run(one, {50, 850}, few);
  CHECK(std::memcmp(few.data(), &dx[77 * 20], sizeof(float) * few.size()) == 0);
  for (std::size_t n = 0; n < 6; ++n) {
    CHECK(some_parts[n].top == parts[77 + n].top);
    CHECK(some_parts[n].sum == parts[77 + n].sum);
    CHECK(some_parts[n].best == parts[77 + n].best);
  }
}

}  // namespace linear_cross_entropy_part_test
