#include <doctest/doctest.h>

#include <cmath>

#include "dflash/comm/communicator.hpp"
#include "main.hpp"
#include "train/parallel_training.hpp"

using namespace dflash;
using namespace parallel_training;

namespace {

/// Every layout that fills the world, against one rank.
template <class T>
void check(double loss_limit, double weight_limit) {
  const auto config = small_config(true, true);
  const auto memory = random_samples(config, {23, 5, 150, 17, 2, 41, 12, 8, 70}, 4);
  const Run one = train_on<T>(SingleProcess{}, config, memory, {}, {.gamma = 4});
  double top = 0;
  for (double w : one.weights) top = std::max(top, std::abs(w));
  const index_t size = mpi().world().size();
  for (index_t u = 1; u <= size; ++u)
    for (index_t r = 1; u * r <= size; ++r) {
      if (size % (u * r) != 0) continue;
      index_t t = 1 + (u + r) % size;  // layouts take turns with the degrees that divide the world
      while (size % t != 0) --t;
      CAPTURE(u);
      CAPTURE(r);
      CAPTURE(t);
      const Run many =
          train_on<T>(mpi().world(), config, memory, {size / (u * r), {u, r}, 2, t}, {.gamma = 4});
      for (std::size_t i = 0; i < one.loss.size(); ++i) {
        CHECK(std::abs(many.loss[i] - one.loss[i]) <= loss_limit * one.loss[i]);
        CHECK(std::abs(many.norm[i] - one.norm[i]) <= loss_limit * one.norm[i]);
      }
      double worst = 0;
      for (std::size_t i = 0; i < one.weights.size(); ++i)
        worst = std::max(worst, std::abs(many.weights[i] - one.weights[i]));
      CHECK(worst <= weight_limit * top);
    }
}

}  // namespace

TEST_CASE("five steps on every layout of processes are those of one, in double") {
  check<double>(1e-12, 1e-12);
}

TEST_CASE("five steps on every layout of processes are those of one, in float") {
  check<float>(1e-5, 1e-4);
}
