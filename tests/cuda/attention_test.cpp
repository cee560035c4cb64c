#include <cstring>
#include <limits>

#include "cuda/attention_problem.hpp"

namespace attention_test {

using namespace dflash;
using namespace dflash_test;

/// In bfloat16 a probability, a score's gradient and a result are each off by up to 2^-9 of itself,
/// in any direction: a sum of many by less than 2^-8, and the gradients, which multiply two rounded
/// numbers, by less than 2^-7. Scores and sums are float: lse is as exact as in float.
template <class T>
struct Tolerance {
  static constexpr double y = 1e-6, lse = 4e-6, gradient = 2e-5;
};
template <>
struct Tolerance<bfloat16> {
  static constexpr double y = 0x1p-8, lse = 1e-5, gradient = 0x1p-8;
};

std::vector<Geometry> geometries() {
  return {
      {64, 2, {1, 0}, 4, 0, 20, {0, 0, 0}, {3, 9, 20}},
      {16, 6, {3, 0}, 5, 0, 300, {0, 0, 0, 170, 170}, {1, 64, 170, 170, 299}},  // an empty range
      {96, 3, {2, 1}, 3, 0, 90, {0, 10, 10}, {10, 10, 90}},                     // heads 1..3 of 4
      {5, 4, {2, 0}, 7, 6, 150, {0, 0, 0, 80}, {2, 40, 80, 150}},
      {128, 4, {4, 0}, 16, 70, 400, {0, 0, 150, 150}, {100, 150, 300, 400}},
      {256, 2, {2, 0}, 1, 0, 130, {0, 0, 100, 100}, {0, 100, 100, 129}},
      {72, 1, {1, 0}, 70, 0, 9, {0, 2}, {2, 9}},
      {128, 8, {4, 2}, 3, 0, 140, {0, 0, 60, 60}, {31, 60, 100, 140}, {2, 1}, {1, 3}},
      {40, 5, {2, 1}, 6, 9, 260, {0, 0, 200, 200}, {64, 131, 200, 260}, {3, 0}, {0, 0}},
      {64, 4, {2, 0}, 8, 0, 200, {120, 0, 0, 120}, {190, 70, 5, 150}},  // in no order
      {192, 2, {2, 0}, 6, 0, 70, {0, 0}, {33, 70}},
      {64, 4, {2, 0}, 3, 0, 1400, {0, 700}, {700, 1400}},  // few rows, keys in parts
      {64, 2, {2, 0}, 1, 600, 1100, {0, 0}, {40, 1090}},
  };
}

TEST_CASE_TEMPLATE("attention is that of the CPU", T, float, bfloat16) {
  CudaBackend<T> backend;
  for (const Geometry& g : geometries()) {
    CAPTURE(g.dim);
    CAPTURE(g.block_size);
    Numbers<T> x(g);
    for (auto* gradient : {&x.dq, &x.dkc, &x.dvc, &x.dkb, &x.dvb})
      gradient->assign(gradient->size(), T(0.0f));
    const Expected expected(g, x);
    Run<CudaBackend<T>> run(backend, g, x);
    run.forward();
    CHECK(relative(run.result(1), expected.y) < Tolerance<T>::y);
    CHECK(close(run.lse(), expected.lse, Tolerance<T>::lse));
    run.set(expected.lse, expected.delta);
    run.backward();
    for (std::size_t i = 0; i < expected.gradients.size(); ++i) {
      CAPTURE(i);
      CHECK(relative(run.result(run.gradients[i]), expected.gradients[i]) < Tolerance<T>::gradient);
    }
  }
}

TEST_CASE_TEMPLATE("attention's backward adds", T, float, bfloat16) {
  CudaBackend<T> backend;
  for (const Geometry& g : {geometries()[3], geometries()[4], geometries()[7]}) {
    CAPTURE(g.dim);
    const Numbers<T> x(g);
    const Expected expected(g, x);
    Run<CudaBackend<T>> run(backend, g, x);
    run.set(expected.lse, expected.delta);
    run.backward();
    for (std::size_t i = 0; i < expected.gradients.size(); ++i)
      CHECK(relative(run.result(run.gradients[i]), expected.gradients[i]) < Tolerance<T>::gradient);
  }
}

TEST_CASE_TEMPLATE("the order of threads and blocks changes no bit of attention", T, float,
                   bfloat16) {
  const Geometry g = geometries()[4];
  const Numbers<T> x(g);
  CudaBackend<T> backend;
  std::vector<std::vector<T>> first;
  for (int turn = 0; turn < 3; ++turn) {
    shuffle_threads(turn);
    Run<CudaBackend<T>> run(backend, g, x);
    run.forward();
    run.set(Expected(g, x).lse, Expected(g, x).delta);
    run.backward();
    std::vector<std::vector<T>> now{run.bits(1)};
    for (std::size_t which : run.gradients) now.push_back(run.bits(which));
    if (turn == 0) first = now;
    for (std::size_t i = 0; i < now.size(); ++i) CHECK(same_bits(now[i], first[i]));
  }
}

TEST_CASE_TEMPLATE("a block's output does not depend on its neighbours or its place in the pack", T,
                   float, bfloat16) {
  CudaBackend<T> backend;
  const Geometry g{128, 4, {2, 0}, 16, 0, 300, {0, 0, 130, 130}, {77, 130, 170, 300}};
  const Numbers<T> x(g);
  Run<CudaBackend<T>> all(backend, g, x);
  all.forward();
  for (std::size_t n = 0; n < 4; ++n) {
    const index_t begin = g.begin[n], end = g.end[n], first = index_t(n) * 16, last = first + 16;
    const Geometry alone{128, 4, {2, 0}, 16, 0, end - begin, {0}, {end - begin}};
    const auto cut = [](const std::vector<T>& from, index_t step, index_t a, index_t b) {
      return std::vector<T>(from.begin() + a * step, from.begin() + b * step);
    };
    Numbers<T> some(alone);
    some.q = cut(x.q, 512, first, last);
    some.kc = cut(x.kc, 256, begin, end), some.vc = cut(x.vc, 256, begin, end);
    some.kb = cut(x.kb, 256, first, last), some.vb = cut(x.vb, 256, first, last);
    Run<CudaBackend<T>> run(backend, alone, some);
    run.forward();
    CHECK(same_bits(run.bits(1), cut(all.bits(1), 512, first, last)));
  }
}

TEST_CASE_TEMPLATE("keys that nobody sees are not touched", T, float, bfloat16) {
  // As on a rank of a ring that holds the own keys of no block, with stale context rows.
  const Geometry g{64, 2, {1, 0}, 2, 0, 200, {0, 120, 120}, {0, 120, 140}, {}, {0, 0}};
  Numbers<T> x(g);
  const T nan(std::numeric_limits<float>::quiet_NaN());
  for (auto* keys : {&x.kc, &x.vc})
    for (index_t s = 0; s < 200; ++s)
      if (s < 120 || s >= 140) std::fill_n(keys->begin() + s * 128, 128, nan);
  CudaBackend<T> backend;
  Run<CudaBackend<T>> run(backend, g, x);
  run.forward();
  const auto y = run.result(1);
  for (std::size_t i = 0; i < y.size(); ++i) {
    CHECK(std::isfinite(y[i]));
    if (i < 4 * 128) CHECK(y[i] == 0);
  }
  const auto lse = run.lse();
  for (std::size_t i = 0; i < 8; ++i) CHECK(lse[i] == -std::numeric_limits<double>::infinity());
  run.set(lse, std::vector<double>(lse.size(), 0.5));
  run.backward();
  for (double v : run.result(3)) CHECK(std::isfinite(v));
  const auto dk = run.bits(8), dv = run.bits(9);
  const auto same = [](T a, T b) { return std::memcmp(&a, &b, sizeof(T)) == 0; };
  for (index_t s = 0; s < 200; ++s) {
    int changed_k = 0, changed_v = 0;
    for (index_t i = s * 128; i < s * 128 + 128; ++i) {
      changed_k += same(dk[at(i)], x.dkc[at(i)]) ? 0 : 1;
      changed_v += same(dv[at(i)], x.dvc[at(i)]) ? 0 : 1;
    }
    CHECK((changed_k > 0) == (s >= 120 && s < 140));
    CHECK((changed_v > 0) == (s >= 120 && s < 140));
  }
}

TEST_CASE_TEMPLATE("the indices of a ring together give the whole gradient", T, float, bfloat16) {
  const Geometry whole{64, 2, {2, 0}, 3, 0, 300, {0, 0}, {170, 300}};
  const Numbers<T> x(whole);
  const Expected expected(whole, x);
  CudaBackend<T> backend;
  for (index_t ring : {2, 3}) {
    Numbers<T> sum = x;
    std::vector<double> dkc(x.kc.size());
    for (index_t index = 0; index < ring; ++index) {
      Geometry part = whole;
      part.stripe = {ring, index};
      if (index > 0) part.own_blocks = {0, 0};
      Numbers<T> here(part);
      here.q = x.q, here.dy = x.dy, here.dq = sum.dq;
      if (index == 0) here.kb = x.kb, here.vb = x.vb;
      for (index_t s = 0; s < part.context_rows(); ++s) {
        const index_t from = part.stripe.global(s) * 64;
        std::copy_n(x.kc.begin() + from, 64, here.kc.begin() + s * 64);
        std::copy_n(x.vc.begin() + from, 64, here.vc.begin() + s * 64);
        std::copy_n(x.dkc.begin() + from, 64, here.dkc.begin() + s * 64);
      }
      Run<CudaBackend<T>> run(backend, part, here);
      run.set(expected.lse, expected.delta);
      run.backward();
      sum.dq = run.bits(3);
      const auto dk = run.result(8);
      for (index_t s = 0; s < part.context_rows(); ++s)
        std::copy_n(dk.begin() + s * 64, 64, dkc.begin() + part.stripe.global(s) * 64);
    }
    std::vector<double> dq;
    for (T v : sum.dq) dq.push_back(double(float(v)));
    CHECK(relative(dq, expected.gradients[0]) < Tolerance<T>::gradient);
    CHECK(relative(dkc, expected.gradients[1]) < Tolerance<T>::gradient);
  }
}

/// NaN in the keys that nobody sees: they may be no numbers.
static void spoil_unseen(const Geometry& g, Numbers<bfloat16>& x) {
  const index_t step = g.kv_heads() * g.dim;
  for (index_t s = 0; s < g.context_rows(); ++s) {
    bool seen = false;
    for (std::size_t n = 0; n < g.end.size(); ++n)
      seen = seen || (s >= g.stripe.local(g.begin[n]) && s < g.stripe.local(g.end[n]));
    if (seen) continue;
    for (auto* keys : {&x.kc, &x.vc})
      std::fill_n(keys->begin() + s * step, step,
                  bfloat16(std::numeric_limits<float>::quiet_NaN()));
  }
}

TEST_CASE("attention by warps and by Hopper's groups of warps is that of the CPU") {
  CudaBackend<bfloat16> backend;
  for (const Geometry& g : geometries())
    for (const bool groups : {false, true})
      for (const bool spoiled : {false, true}) {
        if (g.dim > 128 || g.dim % 8 != 0) continue;
        CAPTURE(g.dim);
        CAPTURE(g.block_size);
        CAPTURE(groups);
        Numbers<bfloat16> x(g);
        for (auto* gradient : {&x.dq, &x.dkc, &x.dvc, &x.dkb, &x.dvb})
          gradient->assign(gradient->size(), bfloat16(0.0f));
        const Expected expected(g, x);
        if (spoiled) spoil_unseen(g, x);
        Run<CudaBackend<bfloat16>> run(backend, g, x);
        g.dim <= 64 ? run.forward_by<64>(groups) : run.forward_by<128>(groups);
        CHECK(relative(run.result(1), expected.y) < Tolerance<bfloat16>::y);
        CHECK(close(run.lse(), expected.lse, Tolerance<bfloat16>::lse));
        run.set(expected.lse, expected.delta);
        g.dim <= 64 ? run.backward_by<64>(groups) : run.backward_by<128>(groups);
        for (std::size_t i = 0; i < (groups && !run.hopper_goes_back() ? 1 : 5); ++i) {
          CAPTURE(i);
          CHECK(relative(run.result(run.gradients[i]), expected.gradients[i]) <
                Tolerance<bfloat16>::gradient);
        }
      }
}

TEST_CASE("a rank without heads has nothing to do") {
  CudaBackend<bfloat16> backend;
  const index_t rows = 16, context = 40;
  Tensor<CudaBackend<bfloat16>, bfloat16, 3> q(backend, {rows, 0, 64}), own(backend, {rows, 0, 64}),
      before(backend, {context, 0, 64});
  Tensor<CudaBackend<bfloat16>, float, 2> lse(backend, {rows, 0});
  const index_t limits[] = {0, context};
  const auto begin = uploaded(backend, limits, 1), end = uploaded(backend, limits + 1, 1);
  const KeyValue<bfloat16> kv{before.view(), before.view(), own.view(), own.view()};
  AttentionRule rule;
  rule.mask = {begin.view(), end.view(), rows, 0, context};
  rule.heads = {2, 0};
  attention(backend, q.view(), kv, rule, q.view(), lse.view());
  attention_backward(backend, q.view(), kv, rule, lse.view(), lse.view(), q.view(), q.view(), kv);
  CHECK_NOTHROW(backend.synchronize());
}

}  // namespace attention_test
