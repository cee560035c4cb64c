#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "cuda/head_shape.hpp"
#include "cuda/support.hpp"
#include "dflash/train/draft_loss.hpp"

namespace linear_cross_entropy_float8_test {

using namespace dflash;
using namespace dflash_test;

using Floats = std::vector<float>;
using Ids = std::vector<std::int32_t>;

/// Numbers as float8 with one scale, and what they stand for.
struct Quantized {
  std::vector<std::uint8_t> bits;
  Floats value;
  float scale = 1;
};
Quantized quantized(const Floats& x) {
  Quantized q;
  float largest = 0;
  for (const float v : x) largest = std::max(largest, std::abs(v));
  if (largest / 448 >= std::numeric_limits<float>::min()) q.scale = largest / 448;
  for (const float v : x) {
    const float8_e4m3 narrow(v / q.scale);
    q.bits.push_back(narrow.bits);
    q.value.push_back(float(narrow) * q.scale);
  }
  return q;
}

Floats part(const Floats& x, index_t first, index_t count, index_t step = 1) {
  Floats some;
  for (index_t i = 0; i < count; ++i) some.push_back(x[at(first + i * step)]);
  return some;
}

template <class U, class B>
std::vector<U> fetched(B& backend, const U* from, index_t n) {
  std::vector<U> host(at(n));
  backend.download(from, host.data(), n);
  return host;
}

/// That `stored`, of which every element of x has one, is x as float8, and zero behind it.
void check_row(const std::vector<float8_e4m3>& stored, index_t first, index_t width,
               const Quantized& expected) {
  std::vector<std::uint8_t> bits;
  for (index_t i = 0; i < width; ++i) bits.push_back(stored[at(first + i)].bits);
  auto all = expected.bits;
  all.resize(at(width), 0);
  CHECK(bits == all);
}

const HeadShape heads[] = {{1, 3, 2},     {5, 16, 50}, {7, 33, 300},
                           {40, 48, 128}, {3, 40, 1},  {0, 8, 10}};
const index_t tiles[] = {16, 112, 8192};

#ifdef __CUDACC__
/// Hopper's products of float8 keep some 13 bits of a partial sum.
constexpr double logit_error = 2e-4;
#else
constexpr double logit_error = 1e-5;
#endif

/// What linear_cross_entropy says of every row.
struct Said {
  Floats nll, dx;
  std::vector<std::uint8_t> correct;
};
template <class T, class P>
Said said(CudaBackend<T>& cuda, const Floats& x, index_t width, const P& head, const Ids& label) {
  const index_t rows = index_t(label.size());
  OnDevice<T> tx(cuda, x), tdx(cuda, x);
  OnDevice<std::int32_t> tl(cuda, label);
  OnDevice<float> tn(cuda, Floats(at(rows)));
  OnDevice<std::uint8_t> tc(cuda, std::vector<std::uint8_t>(at(rows), 7));
  linear_cross_entropy(cuda, tx.matrix(rows, width), head, tl.flat(), tn.flat(), tc.flat(),
                       tdx.matrix(rows, width));
  return {tn.host(cuda), tdx.host(cuda), tc.stored(cuda)};
}

/// x or w with every row as float8 holds it.
Floats rounded_rows(const Floats& x, index_t width) {
  Floats all;
  for (index_t first = 0; first < index_t(x.size()); first += width)
    for (const float v : quantized(part(x, first, width)).value) all.push_back(v);
  return all;
}

double cosine(const Floats& a, const Floats& b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ab += double(a[i]) * double(b[i]);
    aa += double(a[i]) * double(a[i]);
    bb += double(b[i]) * double(b[i]);
  }
  return ab / std::sqrt(aa * bb);
}

TEST_CASE_TEMPLATE("rows become float8 with a scale each", T, float, bfloat16) {
  CudaBackend<T> cuda;
  for (const index_t width : {1, 16, 37, 1100})
    for (const index_t rows : {1, 6}) {
      auto x = numbers<T>(rows * width, 4, 30);
      for (index_t d = 0; d < width; ++d)
        if (rows == 6) {
          x[at(width + d)] = 0;
          x[at(2 * width + d)] = float(T(x[at(d)] * 1e-38f));  // too small for a scale
          x[at(3 * width + d)] = float(T(x[at(d)] * 1e30f));
        }
      const index_t padded = cuda::padded_float8(width), more = rows + 3;
      OnDevice<T> tx(cuda, x);
      OnDevice<float8_e4m3> q(cuda, Floats(at(more * padded), 3));
      OnDevice<float> scale(cuda, Floats(at(more), 3));
      cuda::quantize_rows<T>(cuda, tx.matrix(rows, width), q.matrix(more, padded), scale.flat());
      const auto stored = q.stored(cuda);
      const auto scales = scale.host(cuda);
      for (index_t n = 0; n < more; ++n) {
        const auto expected = quantized(n < rows ? part(x, n * width, width) : Floats{});
        check_row(stored, n * padded, padded, expected);
        CHECK(scales[at(n)] == expected.scale);
      }
    }
}

TEST_CASE_TEMPLATE("the copies of a head hold its rows, and the columns of its tiles", T, float,
                   bfloat16) {
  CudaBackend<T> cuda;
  for (const HeadShape& h : heads)
    for (const index_t tile : tiles) {
      const auto w = numbers<T>(h.words * h.width, 2);
      OnDevice<T> tw(cuda, w);
      const Float8Head<T> head(cuda, tw.matrix(h.words, h.width), tile);
      const index_t width = head.width();
      index_t next = 0;
      for (index_t t = 0; t < head.tiles(); ++t) {
        const index_t words = head.words(t), padded = head.padded_words(t), first = head.first(t);
        CHECK(first == next);
        next += words;
        const auto by_word = fetched(cuda, head.by_word(t), padded * width),
                   by_column = fetched(cuda, head.by_column(t), width * padded);
        const auto word_scale = fetched(cuda, head.word_scale(t), padded),
                   column_scale = fetched(cuda, head.column_scale(t), width);
        for (index_t j = 0; j < padded; ++j) {
          const auto row =
              quantized(j < words ? part(w, (first + j) * h.width, h.width) : Floats{});
          check_row(by_word, j * width, width, row);
          CHECK(word_scale[at(j)] == row.scale);
        }
        for (index_t d = 0; d < width; ++d) {
          const auto column =
              quantized(d < h.width ? part(w, first * h.width + d, words, h.width) : Floats{});
          check_row(by_column, d * padded, padded, column);
          CHECK(column_scale[at(d)] == column.scale);
        }
      }
      CHECK(next == h.words);
    }
}

TEST_CASE_TEMPLATE("the loss is that of the rounded rows and head, exactly", T, float, bfloat16) {
  CpuBackend<float> cpu;
  CudaBackend<T> cuda;
  for (const HeadShape& h : heads) {
    const auto x = numbers<T>(h.rows * h.width, 1), w = numbers<T>(h.words * h.width, 2);
    const auto rx = rounded_rows(x, h.width), rw = rounded_rows(w, h.width);
    const Ids label = h.labels();
    Floats nll(at(h.rows)), dx(x.size());
    std::vector<std::uint8_t> correct(at(h.rows));
    linear_cross_entropy(cpu, matrix(rx, h.rows, h.width), matrix(rw, h.words, h.width),
                         flat(label), flat(nll), flat(correct), matrix(dx, h.rows, h.width));
    OnDevice<T> tw(cuda, w);
    for (const index_t tile : tiles) {
      const Float8Head<T> head(cuda, tw.matrix(h.words, h.width), tile);
      const Said found = said(cuda, x, h.width, head, label);
      CHECK(error(found.nll, nll) < logit_error);
      CHECK(found.correct == correct);
    }
  }
}

TEST_CASE_TEMPLATE("dx is off by no more than the rounding of p and of the head", T, float,
                   bfloat16) {
  CudaBackend<T> cuda;
  const double ulp = std::is_same_v<T, float> ? 1e-5 : 1.0 / 256;
  for (const HeadShape& h : heads) {
    const auto x = numbers<T>(h.rows * h.width, 1), w = numbers<T>(h.words * h.width, 2);
    const auto rx = rounded_rows(x, h.width), rw = rounded_rows(w, h.width);
    const Ids label = h.labels();
    OnDevice<T> tw(cuda, w);
    for (const index_t tile : tiles) {
      const Float8Head<T> head(cuda, tw.matrix(h.words, h.width), tile);
      const Said found = said(cuda, x, h.width, head, label);
      Floats true_dx;
      for (index_t n = 0; n < h.rows; ++n) {
        std::vector<double> p(at(h.words));
        double sum = 0;
        for (index_t j = 0; j < h.words; ++j) {
          double logit = 0;
          for (index_t d = 0; d < h.width; ++d)
            logit += double(rx[at(n * h.width + d)]) * double(rw[at(j * h.width + d)]);
          sum += p[at(j)] = std::exp(logit);
        }
        for (index_t d = 0; d < h.width; ++d) {
          // Both factors of a product are off by a 16th at most, or by half of float8's smallest
          // step under their scale; a word is at most as large as its tile's.
          double expected = -double(w[at(label[at(n)] * h.width + d)]), slack = 0, size = 0;
          for (index_t first = 0; first < h.words; first += tile) {
            double largest_p = 0, largest_w = 0;
            const index_t end = std::min(h.words, first + tile);
            for (index_t j = first; j < end; ++j) {
              largest_p = std::max(largest_p, p[at(j)] / sum);
              largest_w = std::max(largest_w, std::abs(double(w[at(j * h.width + d)])));
            }
            constexpr double step = 0x1p-10 / 448;
            for (index_t j = first; j < end; ++j) {
              const double share = p[at(j)] / sum, of = double(w[at(j * h.width + d)]);
              expected += share * of;
              size += share * std::abs(of);
              if (j == label[at(n)]) continue;
              const double off_p = std::max(share / 16, largest_p * step),
                           off_w = std::max(std::abs(of) / 16, largest_w * step);
              slack += off_p * (std::abs(of) + off_w) + share * off_w;
            }
          }
          const double value = double(found.dx[at(n * h.width + d)]);
          CHECK(std::abs(value - expected) <= slack + ulp * (size + std::abs(expected)) + 1e-6);
          true_dx.push_back(float(expected));
        }
      }
      // Errors of a fourth of that bound, each of its own sign, turn dx by a few hundredths.
      if (h.rows > 0 && h.words > 1) CHECK(cosine(found.dx, true_dx) > 0.997);
    }
  }
}

TEST_CASE_TEMPLATE("a row's bits do not depend on the other rows, nor on how many go together", T,
                   float, bfloat16) {
  CudaBackend<T> cuda;
  const HeadShape h{40, 48, 128};
  const auto x = numbers<T>(h.rows * h.width, 1), w = numbers<T>(h.words * h.width, 2);
  const Ids label = h.labels();
  OnDevice<T> tw(cuda, w);
  const Float8Head<T> head(cuda, tw.matrix(h.words, h.width), 48);
  const Said all = said(cuda, x, h.width, head, label);
  for (const Range some : {Range{0, 1}, Range{7, 9}, Range{20, 40}}) {
    const Said few = said(cuda, part(x, some.begin * h.width, some.size() * h.width), h.width, head,
                          Ids(label.begin() + some.begin, label.begin() + some.end));
    CHECK(few.nll == part(all.nll, some.begin, some.size()));
    CHECK(few.dx == part(all.dx, some.begin * h.width, some.size() * h.width));
  }
  OnDevice<T> tx(cuda, x), tdx(cuda, x);
  OnDevice<std::int32_t> tl(cuda, label);
  OnDevice<float> tn(cuda, Floats(at(h.rows)));
  OnDevice<std::uint8_t> tc(cuda, std::vector<std::uint8_t>(at(h.rows)));
  cuda::detail::run_over_logits<T>(
      cuda, tx.matrix(h.rows, h.width), head, tl.flat(), cuda.fault(), /*tile_rows=*/7,
      cuda::detail::whole_cross_entropy<T>(cuda, tx.matrix(h.rows, h.width), head.rows(), tl.flat(),
                                           tn.flat(), tc.flat(), tdx.matrix(h.rows, h.width)));
  CHECK(tn.host(cuda) == all.nll);
  CHECK(tdx.host(cuda) == all.dx);
}

TEST_CASE_TEMPLATE("parts of the vocabulary merge to the whole", T, float, bfloat16) {
  CudaBackend<T> cuda;
  const HeadShape h{40, 48, 150};
  const index_t cut = 64;  // a boundary of the whole head's tiles, so that scales are the same
  const auto x = numbers<T>(h.rows * h.width, 1), w = numbers<T>(h.words * h.width, 2);
  const Ids label = h.labels();
  OnDevice<T> tw(cuda, w), tx(cuda, x);
  const Said whole =
      said(cuda, x, h.width, Float8Head<T>(cuda, tw.matrix(h.words, h.width), 32), label);

  std::vector<std::vector<CrossEntropyPart<float>>> parts;
  std::vector<OnDevice<T>> dx;
  std::vector<OnDevice<std::int32_t>> labels;
  const Range ranges[] = {{0, cut}, {cut, h.words}};
  for (const Range words : ranges) {
    const Float8Head<T> head(cuda, tw.matrix(h.words, h.width).rows(words), 32);
    Ids here;
    for (const std::int32_t l : label) here.push_back(std::int32_t(l - words.begin));
    labels.emplace_back(cuda, here);
    dx.emplace_back(cuda, x);
    OnDevice<CrossEntropyPart<float>> part(cuda, std::vector<CrossEntropyPart<float>>(at(h.rows)));
    linear_cross_entropy_part(cuda, tx.matrix(h.rows, h.width), head, labels.back().flat(),
                              part.flat(), dx.back().matrix(h.rows, h.width));
    parts.push_back(part.stored(cuda));
  }
  Floats sum(x.size()), nll;
  std::vector<std::uint8_t> correct;
  for (int rank = 0; rank < 2; ++rank) {
    Floats scale, label_share;
    for (std::size_t n = 0; n < label.size(); ++n) {
      const auto &a = parts[0][n], &b = parts[1][n];
      const double top = std::max(double(a.top), double(b.top)),
                   in_a = std::exp(double(a.top) - top), in_b = std::exp(double(b.top) - top),
                   total = in_a * double(a.sum) + in_b * double(b.sum),
                   of_label = std::log(total) + top -
                              double(label[n] < cut ? a.label_logit : b.label_logit);
      scale.push_back(float((rank == 0 ? in_a : in_b) / total));
      label_share.push_back(float(std::expm1(-of_label)));
      if (rank == 1) continue;
      nll.push_back(float(of_label));
      correct.push_back((b.top > a.top ? cut + b.best : a.best) == label[n]);
    }
    OnDevice<float> ts(cuda, scale), tls(cuda, label_share);
    const auto own = tw.matrix(h.words, h.width).rows(ranges[rank]);
    linear_cross_entropy_merge<T>(cuda, own, labels[at(rank)].flat(), ts.flat(), tls.flat(),
                                  dx[at(rank)].matrix(h.rows, h.width));
    const auto more = dx[at(rank)].host(cuda);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
  }
  CHECK(error(nll, whole.nll) < 4e-6);
  CHECK(correct == whole.correct);
  CHECK(error(sum, whole.dx) < (std::is_same_v<T, float> ? 1e-5 : 2e-2));  // parts are rounded to T
}

TEST_CASE("a row that is not finite says so and spoils no other") {
  CudaBackend<float> cuda;
  const HeadShape h{3, 20, 40};
  auto x = numbers<float>(h.rows * h.width, 1);
  OnDevice<float> tw(cuda, numbers<float>(h.words * h.width, 2));
  const Float8Head<float> head(cuda, tw.matrix(h.words, h.width), 16);
  const Said before = said(cuda, x, h.width, head, h.labels());
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    x[at(h.width + 5)] = bad;
    const Said after = said(cuda, x, h.width, head, h.labels());
    CHECK(std::isnan(after.nll[1]));
    CHECK(after.nll[0] == before.nll[0]);
    CHECK(after.nll[2] == before.nll[2]);
    CHECK(part(after.dx, 2 * h.width, h.width) == part(before.dx, 2 * h.width, h.width));
  }
}

TEST_CASE("draft_loss takes a head in float8") {
  CudaBackend<bfloat16> cuda;
  const index_t width = 24, words = 60, slots = 12;
  const auto x = numbers<bfloat16>(slots * width, 1), w = numbers<bfloat16>(words * width, 2);
  const Ids label = HeadShape{slots, width, words}.labels();
  OnDevice<bfloat16> tx(cuda, x), tw(cuda, w), tdx(cuda, x);
  const Float8Head<bfloat16> head = float8_head<bfloat16>(cuda, tw.matrix(words, width));
  const LossResult loss = draft_loss(cuda, head, tx.matrix(slots, width), label,
                                     Floats(at(slots), 1.0f), 4, 1, {}, tdx.matrix(slots, width));
  const Said rows = said(cuda, x, width, head, label);
  double sum = 0;
  for (const float nll : rows.nll) sum += double(nll);
  CHECK(loss.numerator == doctest::Approx(sum).epsilon(1e-12));
  CHECK(tdx.host(cuda) == rows.dx);
}

TEST_CASE("tiles and products that float8 cannot have are refused, a strange label is told") {
  CudaBackend<float> cuda;
  OnDevice<float> tw(cuda, numbers<float>(40 * 20, 2));
  CHECK_THROWS_AS(Float8Head<float>(cuda, tw.matrix(40, 20), 24), Error);
  OnDevice<float8_e4m3> q(cuda, Floats(64 * 64));
  OnDevice<float> y(cuda, Floats(64 * 64));
  const GemmShape good{.rows = 3, .columns = 16, .depth = 32, .b_transposed = true};
  cuda.gemm().multiply(good, q.data(), q.data(), y.data());
  for (const auto& [columns, depth, turned] :
       {std::tuple{8, 32, true}, std::tuple{16, 24, true}, std::tuple{16, 32, false}}) {
    GemmShape bad = good;
    bad.columns = columns, bad.depth = depth, bad.b_transposed = turned;
    CHECK_THROWS_AS(cuda.gemm().multiply(bad, q.data(), q.data(), y.data()), Error);
  }
  CHECK_THROWS_AS(cuda.gemm().multiply(good, q.data() + 1, q.data(), y.data()), Error);

  const Float8Head<float> head(cuda, tw.matrix(40, 20));
  CHECK_THROWS_AS(said(cuda, numbers<float>(20, 1), 20, head, {40}), Error);
}

}  // namespace linear_cross_entropy_float8_test
