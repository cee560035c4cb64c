#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/support.hpp"

namespace linear_test {

using namespace dflash;
using namespace dflash_test;

using Floats = std::vector<float>;

TEST_CASE_TEMPLATE("matrix products are the CPU's", T, float, bfloat16) {
  Pair<T> on;
  for (auto [n, in, out] : {std::array<index_t, 3>{1, 1, 1},
                            {0, 4, 5},
                            {7, 0, 3},
                            {33, 20, 17},
                            {16, 64, 40},
                            {1, 64, 40},
                            {3, 1304, 9},
                            {4, 264, 17}}) {
    const auto x = numbers<T>(n * in, 1), w = numbers<T>(out * in, 2), dy = numbers<T>(n * out, 3);
    Floats y(at(n * out)), dx = numbers<T>(n * in, 4), dw = random<float>(out * in, 5);
    OnDevice<T> tx(on.cuda, x), tw(on.cuda, w), tdy(on.cuda, dy), ty(on.cuda, y), tdx(on.cuda, dx);
    OnDevice<float> tdw(on.cuda, dw);
    linear(on.cpu, matrix(x, n, in), matrix(w, out, in), matrix(y, n, out));
    linear<T>(on.cuda, tx.matrix(n, in), tw.matrix(out, in), ty.matrix(n, out));
    CHECK_NEAR(ty.host(on.cuda), y);
    const auto frozen = freeze<T>(on.cuda, tw.matrix(out, in));
    fill(on.cuda, ty.flat(), T(7.0f));
    linear<T>(on.cuda, tx.matrix(n, in), frozen, ty.matrix(n, out));
    CHECK_NEAR(ty.host(on.cuda), y);
    linear_backward_input(on.cpu, matrix(dy, n, out), matrix(w, out, in), matrix(dx, n, in));
    linear_backward_input<T>(on.cuda, tdy.matrix(n, out), tw.matrix(out, in), tdx.matrix(n, in));
    CHECK_NEAR(tdx.host(on.cuda), dx);
    linear_backward_weight(on.cpu, matrix(dy, n, out), matrix(x, n, in), matrix(dw, out, in));
    linear_backward_weight<T>(on.cuda, tdy.matrix(n, out), tx.matrix(n, in), tdw.matrix(out, in));
    CHECK(error(tdw.host(on.cuda), dw) < tolerance<float>);

    fill(on.cuda, tdx.flat(), T(NAN));
    fill(on.cuda, tdw.flat(), NAN);
    linear_backward_input(on.cpu, matrix(dy, n, out), matrix(w, out, in), matrix(dx, n, in),
                          Result::written);
    linear_backward_input<T>(on.cuda, tdy.matrix(n, out), tw.matrix(out, in), tdx.matrix(n, in),
                             Result::written);
    CHECK_NEAR(tdx.host(on.cuda), dx);
    linear_backward_weight(on.cpu, matrix(dy, n, out), matrix(x, n, in), matrix(dw, out, in),
                           Result::written);
    linear_backward_weight<T>(on.cuda, tdy.matrix(n, out), tx.matrix(n, in), tdw.matrix(out, in),
                              Result::written);
    CHECK(error(tdw.host(on.cuda), dw) < tolerance<float>);
  }
}

TEST_CASE_TEMPLATE("a few rows' products have the same bits whatever their number", T, float,
                   bfloat16) {
  CudaBackend<T> cuda;
  const index_t in = 520, out = 33, most = cuda::few_rows;
  OnDevice<T> x(cuda, numbers<T>(most * in, 1)), w(cuda, numbers<T>(out * in, 2));
  OnDevice<T> all(cuda, Floats(at(most * out))), some(cuda, Floats(at(most * out)));
  linear<T>(cuda, x.matrix(most, in), w.matrix(out, in), all.matrix(most, out));
  for (index_t n = 1; n < most; ++n) {
    linear<T>(cuda, x.matrix(n, in), w.matrix(out, in), some.matrix(n, out));
    const auto a = all.stored(cuda), b = some.stored(cuda);
    CHECK(std::memcmp(a.data(), b.data(), at(n * out) * sizeof(T)) == 0);
  }
}

TEST_CASE_TEMPLATE("products with weights in whole numbers are the CPU's", T, float, bfloat16) {
  Pair<T> on;
  for (auto [n, in, out] : {std::array<index_t, 3>{1, 1, 1},
                            {0, 4, 5},
                            {7, 0, 3},
                            {33, 20, 17},
                            {16, 64, 40},
                            {1, 64, 40},
                            {2, 1304, 9},
                            {2, 3, 4099},
                            {4100, 2, 3}}) {
    const auto x = numbers<T>(n * in, 1);
    auto w = numbers<T>(out * in, 2);
    std::fill_n(w.begin(), in, 0.0f);  // a row without a scale
    Floats y(at(n * out));
    OnDevice<T> tx(on.cuda, x), ty(on.cuda, y);
    const auto frozen = [&, in = in, out = out] {
      OnDevice<T> goes(on.cuda, w);
      return freeze_int8<T>(on.cuda, goes.matrix(out, in));
    }();
    linear(on.cpu, matrix(x, n, in), freeze_int8(on.cpu, matrix(w, out, in)), matrix(y, n, out));
    linear<T>(on.cuda, tx.matrix(n, in), frozen, ty.matrix(n, out));
    CHECK_NEAR(ty.host(on.cuda), y);
  }
}

}  // namespace linear_test
