#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "cuda/support.hpp"

namespace operations_test {

using namespace dflash;
using namespace dflash_test;

using Floats = std::vector<float>;

/// Rows and columns: none, one, odd, whole vectors, longer than a warp's rows.
const std::array<index_t, 2> shapes[] = {{0, 8}, {1, 1}, {5, 7}, {33, 16}, {3, 1040}, {70, 128}};

TEST_CASE_TEMPLATE("elementwise operations are the CPU's", T, float, bfloat16) {
  Pair<T> on;
  for (auto [rows, columns] : shapes) {
    const index_t n = rows * columns;
    const auto x = numbers<T>(n, 1), row = numbers<T>(columns, 3);
    const auto each = random<float>(rows, 4);
    auto y = numbers<T>(n, 2);
    OnDevice<T> dx(on.cuda, x), dy(on.cuda, y), drow(on.cuda, row);
    OnDevice<float> deach(on.cuda, each);

    add(on.cpu, matrix(x, rows, columns), matrix(y, rows, columns));
    add(on.cuda, In<T, 2>(dx.matrix(rows, columns)), dy.matrix(rows, columns));
    CHECK_NEAR(dy.host(on.cuda), y);
    add_rows(on.cpu, flat(row), matrix(y, rows, columns));
    add_rows<T>(on.cuda, drow.flat(), dy.matrix(rows, columns));
    scale_rows(on.cpu, flat(each), matrix(y, rows, columns));
    scale_rows<T>(on.cuda, deach.flat(), dy.matrix(rows, columns));
    CHECK(error(dy.host(on.cuda), y) < 3 * tolerance<T>);  // rounded three times

    auto sum = random<float>(columns, 5);
    OnDevice<float> dsum(on.cuda, sum);
    sum_rows(on.cpu, matrix(x, rows, columns), flat(sum));
    sum_rows<T>(on.cuda, dx.matrix(rows, columns), dsum.flat());
    CHECK(error(dsum.host(on.cuda), sum) < tolerance<float>);

    fill(on.cuda, dy.matrix(rows, columns), T(2.5f));
    CHECK(dy.host(on.cuda) == Floats(at(n), 2.5f));
    convert(on.cuda, View<const T, 1>(dx.flat()), dy.flat());
    CHECK(dy.host(on.cuda) == x);
  }
}

TEST_CASE("numbers become bfloat16 as they do on the host, NaN and infinity too") {
  CudaBackend<bfloat16> cuda;
  auto x = random<float>(1001, 1);
  x[0] = std::numeric_limits<float>::infinity();
  x[1] = -0.0f;
  x[2] = 1 + 0x1p-8f;  // a tie
  x[3] = 3.4e38f;
  OnDevice<float> wide(cuda, x);
  OnDevice<bfloat16> narrow(cuda, Floats(1001));
  convert(cuda, View<const float, 1>(wide.flat()), narrow.flat());
  const auto y = narrow.stored(cuda);
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(y[i].bits == bfloat16(x[i]).bits);
}

TEST_CASE_TEMPLATE("swiglu and its backward are the CPU's", T, float, bfloat16) {
  Pair<T> on;
  for (auto [rows, columns] : shapes) {
    const index_t n = rows * columns;
    const auto gate = numbers<T>(n, 1, 3), up = numbers<T>(n, 2), dy = numbers<T>(n, 3);
    Floats y(at(n)), dgate(at(n), NAN), dup = dgate;
    OnDevice<T> g(on.cuda, gate), u(on.cuda, up), d(on.cuda, dy), out(on.cuda, y),
        dg(on.cuda, dgate), du(on.cuda, dup);
    const auto here = [&, r = rows, c = columns](auto& v) { return matrix(v, r, c); };
    const auto there = [&, r = rows, c = columns](OnDevice<T>& v) { return v.matrix(r, c); };
    swiglu(on.cpu, here(gate), here(up), here(y));
    swiglu<T>(on.cuda, there(g), there(u), there(out));
    CHECK_NEAR(out.host(on.cuda), y);
    swiglu_backward(on.cpu, here(gate), here(up), here(dy), here(dgate), here(dup));
    swiglu_backward<T>(on.cuda, there(g), there(u), there(d), there(dg), there(du));
    CHECK_NEAR(dg.host(on.cuda), dgate);
    CHECK_NEAR(du.host(on.cuda), dup);
    swiglu<T>(on.cuda, there(g), there(u), there(u));
    CHECK_NEAR(u.host(on.cuda), y);
  }
}

TEST_CASE_TEMPLATE("rms_norm and its backward are the CPU's", T, float, bfloat16) {
  Pair<T> on;
  std::vector<std::array<index_t, 2>> all(std::begin(shapes), std::end(shapes));
  // Rows that a team holds in one or several vectors, or cannot; so many that teams go on to
  // others.
  for (const std::array<index_t, 2> more :
       {std::array<index_t, 2>{9, 200}, {6, 600}, {5, 1041}, {3, 4112}, {2, 8200}, {1030, 264}})
    all.push_back(more);
  for (auto [rows, columns] : all) {
    const index_t n = rows * columns;
    const auto x = numbers<T>(n, 1), scale = numbers<T>(columns, 2), dy = numbers<T>(n, 3);
    Floats y(at(n)), rstd(at(rows)), dx = numbers<T>(n, 4), dscale = random<float>(columns, 5);
    OnDevice<T> in(on.cuda, x), s(on.cuda, scale), d(on.cuda, dy), out(on.cuda, y), di(on.cuda, dx);
    OnDevice<float> r(on.cuda, rstd), ds(on.cuda, dscale);
    rms_norm(on.cpu, matrix(x, rows, columns), flat(scale), 1e-6f, matrix(y, rows, columns),
             flat(rstd));
    rms_norm<T>(on.cuda, in.matrix(rows, columns), s.flat(), 1e-6f, out.matrix(rows, columns),
                r.flat());
    CHECK_NEAR(out.host(on.cuda), y);
    CHECK(error(r.host(on.cuda), rstd) < tolerance<float>);
    rms_norm_backward(on.cpu, matrix(x, rows, columns), flat(scale), flat(rstd),
                      matrix(dy, rows, columns), matrix(dx, rows, columns), flat(dscale));
    rms_norm_backward<T>(on.cuda, in.matrix(rows, columns), s.flat(), r.flat(),
                         d.matrix(rows, columns), di.matrix(rows, columns), ds.flat());
    CHECK_NEAR(di.host(on.cuda), dx);
    CHECK(error(ds.host(on.cuda), dscale) < tolerance<float>);
    rms_norm<T>(on.cuda, in.matrix(rows, columns), s.flat(), 1e-6f, in.matrix(rows, columns),
                r.flat());
    CHECK_NEAR(in.host(on.cuda), y);
  }
}

TEST_CASE_TEMPLATE("rope turns as the CPU does, and back", T, float, bfloat16) {
  Pair<T> on;
  struct Shape {
    index_t rows, heads, dim, half;
  };
  for (auto [rows, heads, dim, half] :
       {Shape{0, 2, 8, 4}, {1, 1, 2, 1}, {9, 3, 64, 32}, {5, 2, 40, 16}, {3, 2, 12, 5}}) {
    std::vector<index_t> position;
    for (index_t n = 0; n < rows; ++n) position.push_back(1000 * n + n * n);
    std::vector<double> frequency;
    for (index_t i = 0; i < half; ++i)
      frequency.push_back(std::pow(1e4, -double(i) / double(half)));
    Floats c(at(rows * half)), s(c), x = numbers<T>(rows * heads * dim, 1);
    OnDevice<T> dc(on.cuda, c), ds(on.cuda, s), dx(on.cuda, x);
    OnDevice<index_t> dp(on.cuda, position);
    OnDevice<double> df(on.cuda, frequency);
    rope_table(on.cpu, flat(position), flat(frequency), 0.9, matrix(c, rows, half),
               matrix(s, rows, half));
    rope_table<T>(on.cuda, dp.flat(), df.flat(), 0.9, dc.matrix(rows, half), ds.matrix(rows, half));
    CHECK_NEAR(dc.host(on.cuda), c);
    CHECK_NEAR(ds.host(on.cuda), s);
    for (Rotate way : {Rotate::forward, Rotate::backward}) {
      rope(on.cpu, matrix(c, rows, half), matrix(s, rows, half), way,
           View<float, 3>{x.data(), {rows, heads, dim}});
      rope<T>(on.cuda, dc.matrix(rows, half), ds.matrix(rows, half), way,
              dx.heads(rows, heads, dim));
      CHECK(error(dx.host(on.cuda), x) < 2 * tolerance<T>);  // rounded tables, too
    }
  }
}

TEST_CASE_TEMPLATE("heads are normalised, turned and placed as by the CPU", T, float, bfloat16) {
  Pair<T> on;
  // Vectors for 8 and for 16 lanes, their last ones idle; numbers one by one; more heads than
  // teams.
  for (auto [rows, heads, dim] : {std::array<index_t, 3>{0, 2, 16},
                                  {1, 1, 2},
                                  {3, 3, 90},
                                  {9, 5, 128},
                                  {2, 3, 256},
                                  {2, 2, 250},
                                  {7, 2, 48},
                                  {2100, 8, 16}}) {
    if (rows > 1000 && std::is_same_v<T, float>) continue;  // once is enough
    const index_t n = rows * heads * dim, half = dim / 2;
    const auto x = numbers<T>(n, 1), w = numbers<T>(dim, 2), dy = numbers<T>(n, 3),
               c = numbers<T>(rows * half, 4), s = numbers<T>(rows * half, 5);
    Floats y(at(n)), rstd(at(rows * heads)), dx(at(n)), dw = random<float>(dim, 6);
    OnDevice<T> tx(on.cuda, x), tw(on.cuda, w), tdy(on.cuda, dy), tc(on.cuda, c), ts(on.cuda, s);
    OnDevice<float> tr(on.cuda, rstd), tdw(on.cuda, dw);
    const auto here = [&, r = rows, h = heads, d = dim](auto& v) {
      return View<std::remove_reference_t<decltype(v[0])>, 3>{v.data(), {r, h, d}};
    };
    const auto there = [&, r = rows, h = heads, d = dim](OnDevice<T>& v) {
      return v.heads(r, h, d);
    };
    // 66 parts, so that there are two launches; some overlap, one takes no head, one is not
    // aligned.
    std::vector<HeadPart<float>> parts = {{y.data(), 0, heads}};
    rms_norm_rope(on.cpu, here(x), flat(w), 1e-5f, matrix(c, rows, half), matrix(s, rows, half),
                  parts, flat(rstd));
    const index_t count = rows > 1000 ? 2 : 66;
    for (const index_t shift : {0, 1}) {
      OnDevice<T> all(on.cuda, y), some(on.cuda, Floats(at(count * n / heads + shift), 7.0f));
      std::vector<HeadPart<T>> places = {{all.data(), 0, heads}, {all.data(), heads, 0}};
      for (index_t p = 0; p < count; ++p)
        places.push_back({some.data() + shift + p * rows * dim, p % heads, 1});
      rms_norm_rope<T>(on.cuda, there(tx), tw.flat(), 1e-5f, tc.matrix(rows, half),
                       ts.matrix(rows, half), places, tr.flat());
      CHECK_NEAR(all.host(on.cuda), y);
      CHECK(error(tr.host(on.cuda), rstd) < tolerance<float>);
      const auto whole = all.host(on.cuda), placed = some.host(on.cuda);
      Floats expected(placed.begin(), placed.begin() + shift);
      for (index_t p = 0; p < count; ++p)
        for (index_t row = 0; row < rows; ++row)
          for (index_t d = 0; d < dim; ++d)
            expected.push_back(whole[at((row * heads + p % heads) * dim + d)]);
      CHECK(placed == expected);
    }
    fill(on.cuda, tr.flat(), 0.0f);
    rms_norm_rope<T>(on.cuda, there(tx), tw.flat(), 1e-5f, tc.matrix(rows, half),
                     ts.matrix(rows, half), {}, tr.flat());
    CHECK(error(tr.host(on.cuda), rstd) < tolerance<float>);

    rms_norm_rope_backward(on.cpu, here(x), flat(w), flat(rstd), matrix(c, rows, half),
                           matrix(s, rows, half), here(dy), here(dx), flat(dw));
    rms_norm_rope_backward<T>(on.cuda, there(tx), tw.flat(), tr.flat(), tc.matrix(rows, half),
                              ts.matrix(rows, half), there(tdy), there(tdy), tdw.flat());
    CHECK_NEAR(tdy.host(on.cuda), dx);
    CHECK(error(tdw.host(on.cuda), dw) < tolerance<float>);
  }
}

TEST_CASE_TEMPLATE("rows go where the CPU puts them, and a wrong id is told", T, float, bfloat16) {
  Pair<T> on;
  for (index_t width : {1, 7, 40}) {
    const auto w = numbers<T>(11 * width, 1);
    const std::vector<std::int32_t> ids = {3, 10, 0, 7};
    Floats y(at(4 * width)), back = numbers<T>(11 * width, 2);
    OnDevice<T> dw(on.cuda, w), dy(on.cuda, y), dback(on.cuda, back);
    OnDevice<std::int32_t> di(on.cuda, ids);
    gather_rows(on.cpu, matrix(w, 11, width), flat(ids), matrix(y, 4, width));
    gather_rows<T>(on.cuda, dw.matrix(11, width), di.flat(), dy.matrix(4, width));
    CHECK(dy.host(on.cuda) == y);
    scatter_rows(on.cpu, matrix(y, 4, width), flat(ids), matrix(back, 11, width));
    scatter_rows<T>(on.cuda, dy.matrix(4, width), di.flat(), dback.matrix(11, width));
    CHECK(dback.host(on.cuda) == back);
    for (std::int32_t bad : {-1, 11}) {
      OnDevice<std::int32_t> wrong(on.cuda, std::vector<std::int32_t>{1, bad, 2, 3});
      gather_rows<T>(on.cuda, dw.matrix(11, width), wrong.flat(), dy.matrix(4, width));
      CHECK_THROWS_WITH_AS(on.cuda.synchronize(), "gather_rows: an id is not a row of w", Error);
      scatter_rows<T>(on.cuda, dy.matrix(4, width), wrong.flat(), dback.matrix(11, width));
      CHECK_THROWS_WITH_AS(dback.host(on.cuda), "scatter_rows: an id is not a row of y", Error);
      CHECK_NOTHROW(on.cuda.synchronize());
    }
  }
}

TEST_CASE_TEMPLATE("the first largest of each row is found", T, float, bfloat16) {
  Pair<T> on;
  for (auto [rows, columns] : shapes) {
    auto x = numbers<T>(rows * columns, 1);
    for (index_t n = 0; n < rows; ++n)  // twins
      x[at(n * columns + columns / 2)] = x[at(n * columns + columns - 1)] = 50;
    std::vector<std::int32_t> best(at(rows));
    OnDevice<T> dx(on.cuda, x);
    OnDevice<std::int32_t> db(on.cuda, best);
    argmax_rows(on.cpu, matrix(x, rows, columns), flat(best));
    argmax_rows<T>(on.cuda, dx.matrix(rows, columns), db.flat());
    CHECK(db.stored(on.cuda) == best);
  }
}

TEST_CASE_TEMPLATE("any number is larger than none, wherever that is", T, float, bfloat16) {
  Pair<T> on;
  constexpr index_t columns = 600;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const index_t bad : {0, 5, 300}) {
    auto x = numbers<T>(3 * columns, 1);
    x[at(bad)] = nan, x[at(bad + 8)] = 50;
    x[at(columns + bad)] = nan, x[at(columns + bad + 256)] = 50;
    for (index_t c = 0; c < columns; ++c) x[at(2 * columns + c)] = nan;
    std::vector<std::int32_t> best(3);
    OnDevice<T> dx(on.cuda, x);
    OnDevice<std::int32_t> db(on.cuda, best);
    argmax_rows(on.cpu, matrix(x, 3, columns), flat(best));
    argmax_rows<T>(on.cuda, dx.matrix(3, columns), db.flat());
    CHECK(best == std::vector<std::int32_t>{std::int32_t(bad + 8), std::int32_t(bad + 256), 0});
    CHECK(db.stored(on.cuda) == best);
  }
}

TEST_CASE_TEMPLATE("columns and parts of attention are the CPU's", T, float, bfloat16) {
  Pair<T> on;
  for (auto [rows, wide, first, narrow] :
       {std::array<index_t, 4>{4, 9, 2, 5}, {0, 8, 0, 8}, {6, 40, 16, 8}, {1, 3, 2, 1}}) {
    const auto x = numbers<T>(rows * wide, 1);
    Floats y(at(rows * narrow)), z = numbers<T>(rows * wide, 2);
    OnDevice<T> dx(on.cuda, x), dy(on.cuda, y), dz(on.cuda, z);
    copy_columns(on.cpu, matrix(x, rows, wide), first, matrix(y, rows, narrow));
    copy_columns<T>(on.cuda, dx.matrix(rows, wide), first, dy.matrix(rows, narrow));
    CHECK(dy.host(on.cuda) == y);
    add_columns(on.cpu, matrix(y, rows, narrow), first, matrix(z, rows, wide));
    add_columns<T>(on.cuda, dy.matrix(rows, narrow), first, dz.matrix(rows, wide));
    CHECK_NEAR(dz.host(on.cuda), z);
  }
  const index_t rows = 5, heads = 6, part_heads = 3, dim = 20, first = 2;
  Floats y = numbers<T>(rows * heads * dim, 1), lse = random<float>(rows * heads, 2);
  for (index_t i = 0; i < 4; ++i) lse[at(i)] = -INFINITY, y[at(i * dim)] = 0;
  const auto part = numbers<T>(rows * part_heads * dim, 3);
  auto part_lse = random<float>(rows * part_heads, 4);
  part_lse[3] = -INFINITY;
  OnDevice<T> dy(on.cuda, y), dpart(on.cuda, part);
  OnDevice<float> dlse(on.cuda, lse), dpart_lse(on.cuda, part_lse), ddelta(on.cuda, lse);
  merge_attention(on.cpu, View<const float, 3>{part.data(), {rows, part_heads, dim}},
                  matrix(part_lse, rows, part_heads), first,
                  View<float, 3>{y.data(), {rows, heads, dim}}, matrix(lse, rows, heads));
  merge_attention<T>(on.cuda, dpart.heads(rows, part_heads, dim),
                     dpart_lse.matrix(rows, part_heads), first, dy.heads(rows, heads, dim),
                     dlse.matrix(rows, heads));
  CHECK_NEAR(dy.host(on.cuda), y);
  for (float& v : lse) v = std::max(v, -1e3f);
  auto merged = dlse.host(on.cuda);
  for (float& v : merged) v = std::max(v, -1e3f);
  CHECK(error(merged, lse) < tolerance<float>);

  y = dy.host(on.cuda);
  Floats delta(at(rows * heads));
  const View<const float, 3> all{y.data(), {rows, heads, dim}};
  head_dots(on.cpu, all, all, matrix(delta, rows, heads));
  head_dots<T>(on.cuda, dy.heads(rows, heads, dim), dy.heads(rows, heads, dim),
               ddelta.matrix(rows, heads));
  CHECK(error(ddelta.host(on.cuda), delta) < tolerance<float>);
}

TEST_CASE_TEMPLATE("AdamW steps as the CPU does, and rounds the model in the same pass", T, float,
                   bfloat16) {
  Pair<T> on;
  const AdamWStep step{.rate = 0.01,
                       .beta1 = 0.9,
                       .beta2 = 0.99,
                       .eps = 1e-8,
                       .decay = 0.1,
                       .gradient_scale = 0.3,
                       .correction1 = 0.2,
                       .correction2 = 0.05};
  for (index_t n : {0, 1, 7, 64, 40011}) {
    const auto g = random<float>(n, 1);
    auto w = random<float>(n, 2), m = random<float>(n, 3), v = random<float>(n, 4);
    for (float& x : v) x = std::abs(x);
    OnDevice<float> dg(on.cuda, g), dw(on.cuda, w), dm(on.cuda, m), dv(on.cuda, v);
    OnDevice<T> model(on.cuda, Floats(at(n)));
    const double squares = sum_of_squares(on.cuda, In<float, 1>(dg.flat()));
    CHECK(squares == doctest::Approx(sum_of_squares(on.cpu, flat(g))).epsilon(1e-12));
    adamw(on.cpu, flat(g), step, flat(w), flat(m), flat(v));
    adamw<T>(on.cuda, dg.flat(), step, dw.flat(), dm.flat(), dv.flat(), model.flat());
    CHECK(error(dw.host(on.cuda), w) < 1e-6);
    CHECK(error(dm.host(on.cuda), m) < 1e-6);
    CHECK(error(dv.host(on.cuda), v) < 1e-6);
    const auto master = dw.host(on.cuda), rounded = model.host(on.cuda);
    for (std::size_t i = 0; i < master.size(); ++i) CHECK(rounded[i] == float(T(master[i])));
    adamw(on.cpu, flat(g), step, flat(w), flat(m), flat(v));
    adamw<T>(on.cuda, dg.flat(), step, dw.flat(), dm.flat(), dv.flat());
    CHECK(error(dw.host(on.cuda), w) < 2e-6);
  }
}

}  // namespace operations_test
