#include <doctest/doctest.h>

#include <array>

#include "cpu/support.hpp"
#include "dflash/onednn.hpp"

using namespace dflash;
using namespace dflash_test;

TEST_CASE("oneDNN's products are those of the CPU backend but for rounding") {
  for (int threads : {1, 2})
    for (auto [n, o, k] :
         {std::array<index_t, 3>{1, 1, 1}, {13, 33, 17}, {64, 100, 300}, {5, 6, 0}, {0, 4, 3}}) {
      CAPTURE(n);
      CAPTURE(o);
      CAPTURE(k);
      OnednnBackend theirs(threads);
      CpuBackend<float> ours(threads);
      const auto x = random<float>(n * k, 1), w = random<float>(o * k, 2),
                 dy = random<float>(n * o, 3);
      const auto run = [&](auto& backend) {
        std::array<std::vector<float>, 4> results{std::vector<float>(at(n * o), 9.0f), x, w,
                                                  std::vector<float>(at(n * o), 9.0f)};
        linear(backend, matrix(x, n, k), matrix(w, o, k), matrix(results[0], n, o));
        linear_backward_input(backend, matrix(dy, n, o), matrix(w, o, k), matrix(results[1], n, k));
        linear_backward_weight(backend, matrix(dy, n, o), matrix(x, n, k),
                               matrix(results[2], o, k));
        linear(backend, matrix(x, n, k), freeze(backend, matrix(w, o, k)),
               matrix(results[3], n, o));
        return results;
      };
      const auto a = run(theirs), b = run(ours);
      for (int i = 0; i < 4; ++i) CHECK(difference(a[at(i)], b[at(i)]) < 1e-4);
      CHECK(same_bits(a[3], b[3]));
    }
}
