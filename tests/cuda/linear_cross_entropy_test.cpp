#include <doctest/doctest.h>

#include <array>
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
    const auto scale = random<float>(h.rows, 6);
    linear_cross_entropy_part(cpu, matrix(x, h.rows, h.width), matrix(w, h.words, h.width),
                              flat(label), flat(part), matrix(dx, h.rows, h.width));
    OnDevice<T> tx(cuda, x), tw(cuda, w);
    OnDevice<std::int32_t> tl(cuda, label);
    OnDevice<float> ts(cuda, scale);
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
                                 matrix(merged, h.rows, h.width));
      linear_cross_entropy_merge<T>(cuda, tw.matrix(h.words, h.width), tl.flat(), ts.flat(),
                                    tdx.matrix(h.rows, h.width));
      CHECK(error(tdx.host(cuda), merged) < gradient_tolerance<T>);
    }
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
