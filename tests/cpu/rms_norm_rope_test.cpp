#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/support.hpp"
#include "dflash/cpu.hpp"

namespace rms_norm_rope_test {

using namespace dflash;
using namespace dflash_test;

TEST_CASE_TEMPLATE("heads are normalised, turned and placed with the bits of the single steps", T,
                   float, double) {
  for (CpuPath path : cpu_paths())
    for (auto [rows, heads, dim] : {std::array<index_t, 3>{0, 2, 4}, {1, 1, 2}, {70, 5, 26}}) {
      CpuBackend<T> backend(3, path);
      const index_t size = rows * heads * dim, half = dim / 2;
      const auto x = random<T>(size, 1), w = random<T>(dim, 2), cosine = random<T>(rows * half, 3),
                 sine = random<T>(rows * half, 4), dy = random<T>(size, 5);
      const auto view = [&, r = rows, h = heads, d = dim](auto& v) {
        return View<std::remove_reference_t<decltype(v[0])>, 3>{v.data(), {r, h, d}};
      };
      const auto row = [&, n = rows * heads, d = dim](auto& v) { return matrix(v, n, d); };
      const auto angles = [&, n = rows, h = half](auto& v) { return matrix(v, n, h); };
      std::vector<T> y(x.size()), rstd(at(rows * heads)), found_rstd(rstd), all(x.size());
      rms_norm(backend, row(x), flat(w), T(1e-5), row(y), flat(rstd));
      rope(backend, angles(cosine), angles(sine), Rotate::forward, view(y));
      const index_t last = heads - 1;
      std::vector<T> one(at(rows * dim)), others(at(rows * last * dim));
      const HeadPart<T> parts[] = {
          {one.data(), last, 1}, {all.data(), 0, heads}, {others.data(), 0, last}};
      rms_norm_rope(backend, view(x), flat(w), T(1e-5), angles(cosine), angles(sine), parts,
                    flat(found_rstd));
      CHECK(same_bits(all, y));
      CHECK(same_bits(found_rstd, rstd));
      for (index_t n = 0; n < rows; ++n)
        for (index_t h = 0; h < heads; ++h) {
          const T* to = h == last ? &one[at(n * dim)] : &others[at((n * last + h) * dim)];
          CHECK(std::memcmp(to, &y[at((n * heads + h) * dim)], at(dim) * sizeof(T)) == 0);
        }

      auto dnormed = dy, dx = std::vector<T>(x.size()), found_dx = dy;
      auto dw = random<T>(dim, 6), found_dw = dw;
      rope(backend, angles(cosine), angles(sine), Rotate::backward, view(dnormed));
      rms_norm_backward(backend, row(x), flat(w), flat(rstd), row(dnormed), row(dx), flat(dw));
      rms_norm_rope_backward(backend, view(x), flat(w), flat(rstd), angles(cosine), angles(sine),
                             view(found_dx), view(found_dx), flat(found_dw));
      CHECK(same_bits(found_dx, dx));
      CHECK(same_bits(found_dw, dw));
    }
}

TEST_CASE("the gradients of turned heads are central differences") {
  CpuBackend<double> backend;
  const index_t rows = 3, heads = 2, dim = 6, size = rows * heads * dim;
  auto x = random<double>(size, 1), w = random<double>(dim, 2);
  const auto cosine = random<double>(9, 3), sine = random<double>(9, 4),
             dy = random<double>(size, 5);
  std::vector<double> y(at(size)), rstd(at(rows * heads)), dx(at(size)), dw(at(dim));
  const auto view = [&](auto& v) {
    return View<std::remove_reference_t<decltype(v[0])>, 3>{v.data(), {rows, heads, dim}};
  };
  const auto loss = [&] {
    const HeadPart<double> part = {y.data(), 0, heads};
    rms_norm_rope(backend, view(x), flat(w), 1e-5, matrix(cosine, 3, 3), matrix(sine, 3, 3),
                  {&part, 1}, flat(rstd));
    return dot(y, dy);
  };
  loss();
  rms_norm_rope_backward(backend, view(x), flat(w), flat(rstd), matrix(cosine, 3, 3),
                         matrix(sine, 3, 3), view(dy), view(dx), flat(dw));
  CHECK(gradient_error(x, dx, loss) < 1e-6);
  CHECK(gradient_error(w, dw, loss) < 1e-6);
}

}  // namespace rms_norm_rope_test
