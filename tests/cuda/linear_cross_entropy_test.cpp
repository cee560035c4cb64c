#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "cuda/head_shape.hpp"
#include "cuda/support.hpp"

namespace linear_cross_entropy_test {

using namespace dflash;
using namespace dflash_test;
using cuda::detail::CrossEntropyTile;

using Floats = std::vector<float>;
using Ids = std::vector<std::int32_t>;

const HeadShape heads[] = {{1, 3, 2},  {5, 16, 50}, {7, 33, 300},  {130, 8, 70},
                           {3, 40, 1}, {0, 8, 10},  {2, 12, 2500}, {2, 5, 1501}};
/// The whole at once, and small enough that every head has several.
const CrossEntropyTile tiles[] = {{}, {4, 24}};

/// The sums of p w, each p rounded to T.
template <class T>
constexpr double gradient_tolerance = std::is_same_v<T, float> ? 1e-5 : 2e-2;

TEST_CASE_TEMPLATE("the head's cross entropy is the CPU's, whatever the tiles", T, float,
                   bfloat16) {
  CpuBackend<float> cpu;
  CudaBackend<T> cuda;
  for (const HeadShape& h : heads) {
    const auto x = numbers<T>(h.rows * h.width, 1), w = numbers<T>(h.words * h.width, 2);
    const Ids label = h.labels();
    Floats nll(at(h.rows)), dx(x.size());
    std::vector<std::uint8_t> correct(at(h.rows));
    linear_cross_entropy(cpu, matrix(x, h.rows, h.width), matrix(w, h.words, h.width), flat(label),
                         flat(nll), flat(correct), matrix(dx, h.rows, h.width));
    for (const CrossEntropyTile tile : tiles) {
      OnDevice<T> tx(cuda, x), tw(cuda, w), tdx(cuda, x);
      OnDevice<std::int32_t> tl(cuda, label);
      OnDevice<float> tn(cuda, nll);
      OnDevice<std::uint8_t> tc(cuda, std::vector<std::uint8_t>(at(h.rows), 7));
      cuda::detail::linear_cross_entropy<T>(cuda, tx.matrix(h.rows, h.width),
                                            tw.matrix(h.words, h.width), tl.flat(), tn.flat(),
                                            tc.flat(), tdx.matrix(h.rows, h.width), tile);
      CHECK(error(tn.host(cuda), nll) < 4e-6);
      CHECK(tc.stored(cuda) == correct);
      CHECK(error(tdx.host(cuda), dx) < gradient_tolerance<T>);
    }
  }
}

TEST_CASE_TEMPLATE("parts of the vocabulary are the CPU's, and merge to the whole", T, float,
                   bfloat16) {
  CpuBackend<float> cpu;
  CudaBackend<T> cuda;
  for (const HeadShape& h : heads) {
    const auto x = numbers<T>(h.rows * h.width, 1), w = numbers<T>(h.words * h.width, 2);
    Ids label = h.labels();
    if (h.rows > 2) label[1] = -4, label[2] = std::int32_t(h.words);  // of other parts
    std::vector<CrossEntropyPart<float>> part(at(h.rows));
    Floats dx(x.size());
    const auto scale = random<float>(h.rows, 6), label_share = random<float>(h.rows, 7);
    linear_cross_entropy_part(cpu, matrix(x, h.rows, h.width), matrix(w, h.words, h.width),
                              flat(label), flat(part), matrix(dx, h.rows, h.width));
    OnDevice<T> tx(cuda, x), tw(cuda, w);
    OnDevice<std::int32_t> tl(cuda, label);
    OnDevice<float> ts(cuda, scale), tls(cuda, label_share);
    for (const CrossEntropyTile tile : tiles) {
      OnDevice<T> tdx(cuda, x);
      OnDevice<CrossEntropyPart<float>> tp(cuda, part);
      cuda::detail::linear_cross_entropy_part<T>(cuda, tx.matrix(h.rows, h.width),
                                                 tw.matrix(h.words, h.width), tl.flat(), tp.flat(),
                                                 tdx.matrix(h.rows, h.width), tile);
      const auto found = tp.stored(cuda);
      for (std::size_t n = 0; n < found.size(); ++n) {
        CHECK(found[n].top == doctest::Approx(part[n].top).epsilon(1e-6));
        CHECK(found[n].sum == doctest::Approx(part[n].sum).epsilon(1e-5));
        CHECK(found[n].best == part[n].best);
        if (label[n] >= 0 && label[n] < h.words)
          CHECK(found[n].label_logit == doctest::Approx(part[n].label_logit).epsilon(1e-6));
      }
      CHECK(error(tdx.host(cuda), dx) < gradient_tolerance<T>);
      auto merged = dx;
      linear_cross_entropy_merge(cpu, matrix(w, h.words, h.width), flat(label), flat(scale),
                                 flat(label_share), matrix(merged, h.rows, h.width));
      linear_cross_entropy_merge<T>(cuda, tw.matrix(h.words, h.width), tl.flat(), ts.flat(),
                                    tls.flat(), tdx.matrix(h.rows, h.width));
      CHECK(error(tdx.host(cuda), merged) < gradient_tolerance<T>);
    }
  }
}

TEST_CASE_TEMPLATE("a part keeps the gradient of a row that is predicted well", T, float,
                   bfloat16) {
  CudaBackend<T> cuda;
  const HeadShape h{1, 64, 130};
  const auto w = numbers<T>(h.words * h.width, 2);
  // Along the label's word: x w(0) is `logit`, and the others' logits are small beside it.
  double square = 0;
  for (index_t d = 0; d < h.width; ++d) square += double(float(w[at(d)])) * double(float(w[at(d)]));
  for (const double logit : {9.0, 12.0, 16.0}) {
    std::vector<T> x;
    for (index_t d = 0; d < h.width; ++d) x.push_back(T(float(w[at(d)]) * float(logit / square)));
    std::vector<double> e;
    for (index_t v = 0; v < h.words; ++v) {
      double s = 0;
      for (index_t d = 0; d < h.width; ++d)
        s += double(float(x[at(d)])) * double(float(w[at(v * h.width + d)]));
      e.push_back(std::exp(s));
    }
    const double sum = std::accumulate(e.begin(), e.end(), 0.0), rest = sum - e[0];
    CHECK(rest / sum < 0.1);
    Floats expected(at(h.width));
    for (index_t d = 0; d < h.width; ++d) {
      double s = -rest * double(float(w[at(d)]));
      for (index_t v = 1; v < h.words; ++v) s += e[at(v)] * double(float(w[at(v * h.width + d)]));
      expected[at(d)] = float(s / sum);
    }
    OnDevice<T> tx(cuda, x), tw(cuda, w), tdx(cuda, x);
    OnDevice<std::int32_t> label(cuda, Ids{0});
    OnDevice<CrossEntropyPart<float>> part(cuda, std::vector<CrossEntropyPart<float>>(1));
    linear_cross_entropy_part<T>(cuda, tx.matrix(1, h.width), tw.matrix(h.words, h.width),
                                 label.flat(), part.flat(), tdx.matrix(1, h.width));
    OnDevice<float> scale(cuda, Floats{float(std::exp(double(part.stored(cuda)[0].top)) / sum)}),
        label_share(cuda, Floats{float(-rest / sum)});
    linear_cross_entropy_merge<T>(cuda, tw.matrix(h.words, h.width), label.flat(), scale.flat(),
                                  label_share.flat(), tdx.matrix(1, h.width));
    CHECK(error(tdx.host(cuda), expected) < gradient_tolerance<T>);
  }
}

TEST_CASE("of equal logits the first counts, a label outside the vocabulary is told") {
  CudaBackend<float> cuda;
  Floats x = {1, 0, 1, 0}, w(200);
  w[2 * 7] = w[2 * 90] = 1;  // words 7 and 90 of 100
  OnDevice<float> tx(cuda, x), tw(cuda, w), tdx(cuda, x), tn(cuda, Floats(2));
  OnDevice<std::uint8_t> tc(cuda, std::vector<std::uint8_t>(2));
  for (const Ids& label : {Ids{7, 90}, Ids{7, 100}, Ids{-1, 7}}) {
    OnDevice<std::int32_t> tl(cuda, label);
    cuda::detail::linear_cross_entropy<float>(cuda, tx.matrix(2, 2), tw.matrix(100, 2), tl.flat(),
                                              tn.flat(), tc.flat(), tdx.matrix(2, 2), {1, 24});
    if (label[1] == 90)
      CHECK(tc.stored(cuda) == std::vector<std::uint8_t>{1, 0});
    else
      CHECK_THROWS_AS(cuda.synchronize(), Error);
  }
}

}  // namespace linear_cross_entropy_test
