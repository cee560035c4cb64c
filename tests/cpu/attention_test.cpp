#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/precisions.hpp"
#include "cpu/registers_in_memory.hpp"
#include "cpu/support.hpp"
#include "dflash/cpu.hpp"

namespace attention_test {

using namespace dflash;
using namespace dflash_test;

/// Blocks over one packed context, with everything attention reads and writes.
template <class T>
struct Problem {
  index_t dim, heads, block_size, rows, context_rows, kv_heads;
  std::vector<index_t> begin, end;
  AttentionRule rule;
  std::vector<T> q, kc, vc, kb, vb, y, lse, dy, delta, dq, dkc, dvc, dkb, dvb;

  Problem(index_t dim_, index_t heads_, HeadGroups groups, index_t block_size_, index_t window,
          index_t context, std::vector<index_t> begin_, std::vector<index_t> end_)
      : dim(dim_),
        heads(heads_),
        block_size(block_size_),
        rows(index_t(end_.size()) * block_size_),
        context_rows(context),
        kv_heads(groups.kv(heads_ - 1) + 1),
        begin(std::move(begin_)),
        end(std::move(end_)) {
    rule.mask.block_size = block_size;
    rule.mask.window = window;
    rule.mask.context_total = context;
    rule.heads = groups;
    rule.scale = 1 / std::sqrt(double(dim));
    rule.may_round = true;
    q = random<T>(rows * heads * dim, 1);
    dy = random<T>(rows * heads * dim, 2);
    kc = random<T>(context * kv_heads * dim, 3);
    vc = random<T>(context * kv_heads * dim, 4);
    kb = random<T>(rows * kv_heads * dim, 5);
    vb = random<T>(rows * kv_heads * dim, 6);
    y.assign(q.size(), T(7));
    lse.assign(at(rows * heads), T(7));
    delta = lse;
    dq = random<T>(index_t(q.size()), 7);
    dkc = random<T>(index_t(kc.size()), 8);
    dvc = random<T>(index_t(kc.size()), 9);
    dkb = random<T>(index_t(kb.size()), 10);
    dvb = random<T>(index_t(kb.size()), 11);
  }

  AttentionRule the_rule() const {
    AttentionRule r = rule;
    r.mask.begin = flat(begin);
    r.mask.end = flat(end);
    return r;
  }
  View<T, 3> queries(std::vector<T>& x) { return {x.data(), {rows, heads, dim}}; }
  View<T, 2> per_row(std::vector<T>& x) { return {x.data(), {rows, heads}}; }
  KeyValue<T> keys() {
    return {{kc.data(), {context_rows, kv_heads, dim}},
            {vc.data(), {context_rows, kv_heads, dim}},
            {kb.data(), {rows, kv_heads, dim}},
            {vb.data(), {rows, kv_heads, dim}}};
  }
  KeyValue<T> key_gradients() {
    return {{dkc.data(), {context_rows, kv_heads, dim}},
            {dvc.data(), {context_rows, kv_heads, dim}},
            {dkb.data(), {rows, kv_heads, dim}},
            {dvb.data(), {rows, kv_heads, dim}}};
  }

  void forward(CpuBackend<T>& backend) {
    attention(backend, queries(q), keys(), the_rule(), queries(y), per_row(lse));
  }
  void backward(CpuBackend<T>& backend) {
    head_dots(backend, queries(y), queries(dy), per_row(delta));
    attention_backward(backend, queries(q), keys(), the_rule(), per_row(lse), per_row(delta),
                       queries(dy), queries(dq), key_gradients());
  }

  /// The textbook formula, row by row, in double.
  void expected(std::vector<double>& out, std::vector<double>& log_sum) const {
    out.assign(q.size(), 0);
    log_sum.assign(lse.size(), -std::numeric_limits<double>::infinity());
    for (index_t n = 0; n < rows; ++n)
      for (index_t h = 0; h < heads; ++h) {
        const index_t block = n / block_size, o = n % block_size, g = rule.heads.kv(h);
        std::vector<const T*> k, v;
        for (index_t s = begin[at(block)]; s < end[at(block)]; ++s)
          if (rule.mask.window == 0 || s >= end[at(block)] + o - (rule.mask.window - 1)) {
            k.push_back(&kc[at((s * kv_heads + g) * dim)]);
            v.push_back(&vc[at((s * kv_heads + g) * dim)]);
          }
        for (index_t j = 0; j < block_size; ++j)
          if (rule.mask.window == 0 || j <= o) {
            k.push_back(&kb[at(((block * block_size + j) * kv_heads + g) * dim)]);
            v.push_back(&vb[at(((block * block_size + j) * kv_heads + g) * dim)]);
          }
        double sum = 0;
        std::vector<double> weight;
        for (const T* key : k) {
          double s = 0;
          for (index_t d = 0; d < dim; ++d)
            s += double(q[at((n * heads + h) * dim + d)]) * double(key[d]);
          weight.push_back(std::exp(s * rule.scale));
          sum += weight.back();
        }
        log_sum[at(n * heads + h)] = std::log(sum);
        for (std::size_t j = 0; j < v.size(); ++j)
          for (index_t d = 0; d < dim; ++d)
            out[at((n * heads + h) * dim + d)] += weight[j] / sum * double(v[j][d]);
      }
  }
};

template <class T>
std::vector<Problem<T>> problems() {
  std::vector<Problem<T>> list;
  list.push_back({8, 2, {1, 0}, 4, 0, 20, {0, 0, 0}, {3, 9, 20}});
  list.push_back({16, 6, {3, 0}, 5, 0, 300, {0, 0, 0, 170, 170}, {1, 64, 170, 170, 299}});
  list.push_back({32, 3, {2, 1}, 3, 0, 90, {0, 10, 10}, {10, 10, 90}});  // heads 1..3 of 4
  list.push_back({5, 4, {2, 0}, 7, 6, 150, {0, 0, 0, 80}, {2, 40, 80, 150}});
  list.push_back({24, 4, {4, 0}, 16, 70, 400, {0, 0, 150, 150}, {100, 150, 300, 400}});
  list.push_back({96, 2, {2, 0}, 1, 0, 130, {0, 0, 100, 100}, {0, 100, 100, 129}});
  list.push_back({8, 2, {2, 0}, 70, 0, 9, {0, 2}, {2, 9}});
  list.push_back({8, 2, {2, 0}, 2, 1, 9, {0, 2}, {2, 9}});
  return list;
}

/// The ways in which attention's products differ.
template <class T>
auto attention_ways() {
  auto all = ways<T>();
  std::erase_if(all, [](const auto& way) {
    return way.second != CpuPrecision::fp32 &&
           !(way.second == CpuPrecision::bf16 && way.first >= CpuPath::avx512_bf16);
  });
  return all;
}

TEST_CASE_TEMPLATE("attention is the softmax's formula", T, float, double) {
  for (const auto& [path, precision] : attention_ways<T>())
    for (auto& p : problems<T>()) {
      CAPTURE(int(path));
      CAPTURE(name_of(precision));
      CAPTURE(p.dim);
      CpuBackend<T> backend(1, path, precision);
      p.forward(backend);
      std::vector<double> y, lse;
      p.expected(y, lse);
      const double tolerance = precision == CpuPrecision::bf16 ? 0.03
                               : std::is_same_v<T, float>      ? 3e-6
                                                               : 1e-14;
      CHECK(difference(std::vector<double>(p.y.begin(), p.y.end()), y) < tolerance);
      CHECK(difference(std::vector<double>(p.lse.begin(), p.lse.end()), lse) < tolerance);
    }
}

TEST_CASE("attention's gradients are central differences, and add") {
  for (CpuPath path : cpu_paths())
    for (auto& p : problems<double>()) {
      if (p.rows * p.dim > 1000 && path != cpu_paths().back()) continue;
      CAPTURE(int(path));
      CAPTURE(p.dim);
      CpuBackend<double> backend(1, path);
      Problem<double> before = p;
      p.forward(backend);
      p.backward(backend);
      const auto loss = [&] {
        Problem<double> other = before;
        other.q = p.q, other.kc = p.kc, other.vc = p.vc, other.kb = p.kb, other.vb = p.vb;
        other.forward(backend);
        return dot(other.y, p.dy);
      };
      const auto check = [&](std::vector<double>& x, const std::vector<double>& after,
                             const std::vector<double>& old) {
        std::vector<double> gradient(after.size()), some(after.size()), chosen;
        for (std::size_t i = 0; i < after.size(); ++i) gradient[i] = after[i] - old[i];
        double worst = 0, largest = 1e-3;
        const std::size_t step = 1 + x.size() / 60;  // a sample of the entries
        for (std::size_t i = 0; i < x.size(); i += step) {
          const double kept = x[i];
          x[i] = kept + 1e-5;
          const double above = loss();
          x[i] = kept - 1e-5;
          const double below = loss();
          x[i] = kept;
          worst = std::max(worst, std::abs((above - below) / 2e-5 - gradient[i]));
        }
        for (double g : gradient) largest = std::max(largest, std::abs(g));
        CHECK(worst / largest < 1e-7);
      };
      check(p.q, p.dq, before.dq);
      check(p.kc, p.dkc, before.dkc);
      check(p.vc, p.dvc, before.dvc);
      check(p.kb, p.dkb, before.dkb);
      check(p.vb, p.dvb, before.dvb);
    }
}

TEST_CASE("float gradients are those of double") {
  for (CpuPath path : cpu_paths())
    for (std::size_t i = 0; i < problems<float>().size(); ++i) {
      auto p = problems<float>()[i];
      auto d = problems<double>()[i];
      const auto widen = [](const std::vector<float>& x) {
        return std::vector<double>(x.begin(), x.end());
      };
      d.q = widen(p.q), d.kc = widen(p.kc), d.vc = widen(p.vc), d.kb = widen(p.kb);
      d.vb = widen(p.vb), d.dy = widen(p.dy), d.dq = widen(p.dq), d.dkc = widen(p.dkc);
      d.dvc = widen(p.dvc), d.dkb = widen(p.dkb), d.dvb = widen(p.dvb);
      CpuBackend<float> single(1, path);
      CpuBackend<double> twice(1, path);
      p.forward(single);
      p.backward(single);
      d.forward(twice);
      d.backward(twice);
      CHECK(difference(widen(p.dq), d.dq) < 1e-5);
      CHECK(difference(widen(p.dkc), d.dkc) < 1e-5);
      CHECK(difference(widen(p.dvc), d.dvc) < 1e-5);
      CHECK(difference(widen(p.dkb), d.dkb) < 1e-5);
      CHECK(difference(widen(p.dvb), d.dvb) < 1e-5);
    }
}

TEST_CASE_TEMPLATE("threads change no bit of attention", T, float, double) {
  for (const auto& [path, precision] : attention_ways<T>())
    for (auto& p : problems<T>()) {
      auto other = p;
      CpuBackend<T> one(1, path, precision), three(3, path, precision);
      p.forward(one);
      p.backward(one);
      other.forward(three);
      other.backward(three);
      CHECK(same_bits(p.y, other.y));
      CHECK(same_bits(p.lse, other.lse));
      CHECK(same_bits(p.dq, other.dq));
      CHECK(same_bits(p.dkc, other.dkc));
      CHECK(same_bits(p.dvc, other.dvc));
      CHECK(same_bits(p.dkb, other.dkb));
      CHECK(same_bits(p.dvb, other.dvb));
    }
}

TEST_CASE_TEMPLATE("a block's output does not depend on its neighbours or its place in the pack", T,
                   float, double) {
  for (const auto& [path, precision] : attention_ways<T>())
    for (auto& p : problems<T>()) {
      CpuBackend<T> backend(1, path, precision);
      p.forward(backend);
      const index_t q_row = p.heads * p.dim, kv_row = p.kv_heads * p.dim;
      for (std::size_t n = 0; n < p.end.size(); ++n) {
        // The block alone, with no context but what it sees.
        const index_t begin = p.begin[n], end = p.end[n];
        Problem<T> alone(p.dim, p.heads, p.rule.heads, p.block_size, p.rule.mask.window,
                         end - begin, {0}, {end - begin});
        const auto cut = [](const std::vector<T>& x, index_t first, index_t last) {
          return std::vector<T>(x.begin() + first, x.begin() + last);
        };
        const index_t first = index_t(n) * p.block_size, last = first + p.block_size;
        alone.q = cut(p.q, first * q_row, last * q_row);
        alone.kc = cut(p.kc, begin * kv_row, end * kv_row);
        alone.vc = cut(p.vc, begin * kv_row, end * kv_row);
        alone.kb = cut(p.kb, first * kv_row, last * kv_row);
        alone.vb = cut(p.vb, first * kv_row, last * kv_row);
        alone.forward(backend);
        CHECK(same_bits(alone.y, cut(p.y, first * q_row, last * q_row)));
        CHECK(same_bits(alone.lse, cut(p.lse, first * p.heads, last * p.heads)));
      }
    }
}

/// Causal rows one at a time or a few have the bits of all at once; `attend` takes what attention
/// does, behind the backend.
template <class T, class Attend>
void check_causal_parts(index_t dim, index_t heads, HeadGroups groups, Attend attend) {
  const index_t rows = 150;
  for (index_t window : {0, 40}) {
    std::vector<index_t> begin(at(rows), 0), end(at(rows));
    for (index_t n = 0; n < rows; ++n) end[at(n)] = n;
    Problem<T> all(dim, heads, groups, 1, window, rows, begin, end);
    all.kc = all.kb;  // the context is the rows themselves
    all.vc = all.vb;
    attend(all.queries(all.q), all.keys(), all.the_rule(), all.queries(all.y),
           all.per_row(all.lse));
    for (index_t step : {1, 5}) {
      Problem<T> cached = all;
      cached.y.assign(all.y.size(), T(0));
      cached.lse.assign(all.lse.size(), T(0));
      for (index_t n = 0; n < rows; n += step) {
        // What lies behind the rows that were computed so far is not to be read.
        const Range some{n, n + step};
        const index_t later = some.end * all.kv_heads * dim;
        Problem<T> now = all;
        std::fill(now.kc.begin() + later, now.kc.end(), std::numeric_limits<T>::quiet_NaN());
        std::fill(now.vc.begin() + later, now.vc.end(), std::numeric_limits<T>::quiet_NaN());
        AttentionRule rule = all.the_rule();
        rule.mask.begin = rule.mask.begin.rows(some);
        rule.mask.end = rule.mask.end.rows(some);
        KeyValue<T> kv = now.keys();
        kv.k_block = kv.k_block.rows(some);
        kv.v_block = kv.v_block.rows(some);
        attend(now.queries(now.q).rows(some), kv, rule, cached.queries(cached.y).rows(some),
               cached.per_row(cached.lse).rows(some));
      }
      CHECK(same_bits(cached.y, all.y));
      CHECK(same_bits(cached.lse, all.lse));
    }
  }
}

TEST_CASE_TEMPLATE("causal rows one at a time or a few have the bits of all at once", T, float,
                   double) {
  for (const auto& [path, precision] : attention_ways<T>()) {
    CpuBackend<T> backend(1, path, precision);
    check_causal_parts<T>(16, 4, {2, 0},
                          [&](auto&&... tensors) { attention(backend, tensors...); });
  }
}

TEST_CASE("rows without keys give zero, and keys that nobody sees are not touched") {
  // As on a rank of a ring that holds the own keys of no block, here with stale context rows.
  Problem<double> p(8, 2, {1, 0}, 2, 0, 200, {0, 120, 120}, {0, 120, 140});
  p.rule.mask.own_blocks = {0, 0};
  for (auto* x : {&p.kc, &p.vc})
    for (index_t s = 0; s < 200; ++s)
      if (s < 120 || s >= 140)
        std::fill_n(x->begin() + s * 16, 16, std::numeric_limits<double>::quiet_NaN());
  std::fill(p.kb.begin(), p.kb.end(), std::numeric_limits<double>::quiet_NaN());
  std::fill(p.vb.begin(), p.vb.end(), std::numeric_limits<double>::quiet_NaN());
  const auto before = p;
  CpuBackend<double> backend;
  p.forward(backend);
  p.backward(backend);
  for (std::size_t i = 0; i < p.y.size(); ++i) {
    if (i < 4 * 16) CHECK(p.y[i] == 0);
    CHECK(std::isfinite(p.y[i]));
    CHECK(std::isfinite(p.dq[i]));
  }
  for (std::size_t i = 0; i < 8; ++i) CHECK(p.lse[i] == -std::numeric_limits<double>::infinity());
  CHECK(same_bits(p.dkb, before.dkb));
  for (index_t s = 0; s < 200; ++s)
    for (index_t d = 0; d < 16; ++d)
      CHECK((p.dkc[at(s * 16 + d)] != before.dkc[at(s * 16 + d)]) == (s >= 120 && s < 140));
}

TEST_CASE("parts of the keys treated apart give the whole gradient") {
  // Two indices of a ring: each sees every other stripe of 64 context rows.
  Problem<double> whole(8, 2, {2, 0}, 3, 0, 300, {0, 0}, {170, 300});
  CpuBackend<double> backend;
  whole.forward(backend);
  Problem<double> sum = whole;
  whole.backward(backend);
  const index_t kv_row = whole.dim;
  for (index_t index : {0, 1}) {
    Problem<double> part = sum;
    part.rule.mask.stripe = {2, index};
    if (index == 1) part.rule.mask.own_blocks = {0, 0};
    part.context_rows = part.rule.mask.stripe.local(300);
    const auto local = [&](const std::vector<double>& x) {
      std::vector<double> some;
      for (index_t s = 0; s < part.context_rows; ++s) {
        const index_t from = part.rule.mask.stripe.global(s) * kv_row;
        some.insert(some.end(), x.begin() + from, x.begin() + from + kv_row);
      }
      return some;
    };
    part.kc = local(sum.kc);
    part.vc = local(sum.vc);
    part.dkc = local(sum.dkc);
    part.dvc = local(sum.dvc);
    part.backward(backend);
    sum.dq = part.dq;
    sum.dkb = part.dkb;
    for (index_t s = 0; s < part.context_rows; ++s)
      std::copy_n(part.dkc.begin() + s * kv_row, kv_row,
                  sum.dkc.begin() + part.rule.mask.stripe.global(s) * kv_row);
  }
  CHECK(difference(sum.dq, whole.dq) < 1e-13);
  CHECK(difference(sum.dkc, whole.dkc) < 1e-13);
  CHECK(difference(sum.dkb, whole.dkb) < 1e-13);
}

TEST_CASE("no block and no context row are fine") {
  CpuBackend<float> backend;
  Problem<float> none(8, 2, {1, 0}, 4, 0, 10, {}, {});
  none.forward(backend);
  none.backward(backend);
  Problem<float> empty(8, 2, {1, 0}, 4, 0, 0, {0, 0}, {0, 0});
  empty.forward(backend);
  empty.backward(backend);
  std::vector<double> y, lse;
  empty.expected(y, lse);
  CHECK(difference(std::vector<double>(empty.y.begin(), empty.y.end()), y) < 1e-5);
}

#if defined(__x86_64__)

/// attention in bfloat16 as AMX does it, with registers in memory.
void attend_by_amx(CpuBackend<float>& backend, In<float, 3> q, const KeyValue<const float>& kv,
                   const AttentionRule& rule, Out<float, 3> y, Out<float, 2> lse) {
  detail::attend<detail::AmxFactors<RegistersInMemory>, float>(backend, q, kv, rule, y, lse);
}

TEST_CASE("attention by matrix registers is the formula's, and a row's bits are its own") {
  if (cpu_paths().back() < CpuPath::avx512_bf16) return;  // it rounds by that
  CpuBackend<float> backend(1, CpuPath::avx512_bf16, CpuPrecision::bf16);
  for (auto& p : problems<float>()) {
    CAPTURE(p.dim);
    attend_by_amx(backend, p.queries(p.q), p.keys(), p.the_rule(), p.queries(p.y),
                  p.per_row(p.lse));
    std::vector<double> y, lse;
    p.expected(y, lse);
    CHECK(difference(std::vector<double>(p.y.begin(), p.y.end()), y) < 0.03);
    CHECK(difference(std::vector<double>(p.lse.begin(), p.lse.end()), lse) < 0.03);
  }
  for (const index_t dim : {16, 40, 64})
    check_causal_parts<float>(dim, 6, {3, 0},
                              [&](auto&&... tensors) { attend_by_amx(backend, tensors...); });
}

#endif

TEST_CASE("tensors that do not fit q and the keys are refused") {
  using P = Problem<float>;
  P p(32, 4, {2, 0}, 8, 0, 20, {0, 0}, {10, 20});
  CpuBackend<float> backend;
  const View<float, 3> short_rows{p.y.data(), {p.rows, p.heads, p.dim - 1}};
  const View<float, 2> fewer{p.lse.data(), {p.rows - 1, p.heads}};
  CHECK_THROWS_WITH_AS(
      attention(backend, p.queries(p.q), p.keys(), p.the_rule(), short_rows, p.per_row(p.lse)),
      doctest::Contains("attention: y, dy and dq must have the shape of q"), Error);
  CHECK_THROWS_WITH_AS(
      attention(backend, p.queries(p.q), p.keys(), p.the_rule(), p.queries(p.y), fewer),
      doctest::Contains("attention: lse and delta must have a number for each row and head of q"),
      Error);
  KeyValue<float> gradients = p.key_gradients();
  gradients.v_context = gradients.v_context.rows({0, 19});
  CHECK_THROWS_WITH_AS(
      attention_backward(backend, p.queries(p.q), p.keys(), p.the_rule(), p.per_row(p.lse),
                         p.per_row(p.delta), p.queries(p.dy), p.queries(p.dq), gradients),
      doctest::Contains("attention: gradients of keys and values must have their shapes"), Error);
}

}  // namespace attention_test
