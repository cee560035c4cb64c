// How the time of a training step grows with the context (S), the blocks (N) and the vocabulary
// (V), one at a time, and how well a straight line fits.
//   scaling [--threads N] [--steps M]

#include <CLI/CLI.hpp>
#include <cstdio>

#include "training_loop.hpp"

using namespace dflash_benchmark;

namespace {

struct Point {
  double x, seconds;
};

/// The line with the least relative errors through the points, and the largest of these.
void print_fit(const char* what, const std::vector<Point>& points) {
  double w = 0, wx = 0, wy = 0, wxx = 0, wxy = 0;
  for (const auto& [x, y] : points) {
    const double weight = 1 / (y * y);
    w += weight, wx += weight * x, wy += weight * y, wxx += weight * x * x, wxy += weight * x * y;
  }
  const double slope = (w * wxy - wx * wy) / (w * wxx - wx * wx), base = (wy - slope * wx) / w;
  double worst = 0;
  for (const auto& [x, y] : points) {
    const double line = base + slope * x;
    std::printf("  %s = %-7.0f %9.2f ms   line %9.2f ms\n", what, x, y * 1e3, line * 1e3);
    worst = std::max(worst, std::abs(line / y - 1));
  }
  std::printf("%s: %.3f ms + %.3f us x %s, at most %.1f %% off\n", what, base * 1e3, slope * 1e6,
              what, worst * 100);
}

template <class Set>
void measure(const char* what, int threads, int steps, const std::vector<index_t>& values,
             Set set) {
  std::vector<Point> points;
  for (const index_t value : values) {
    TrainingShape shape = shape_named("tiny");
    shape.batch = 1;
    shape.tokens = 1024;
    shape.anchors = 128;
    set(shape, value);
    shape.config.mask_token = std::int32_t(shape.config.vocabulary - 1);
    B backend(threads);
    TrainingProblem problem(backend, shape);
    Trainer trainer(backend, problem);
    std::vector<Measured> done;
    for (int i = 0; i < steps + 2; ++i) {
      const Measured m = trainer.step();
      if (i >= 2) done.push_back(m);
    }
    points.push_back({double(value), median(done, &Measured::step)});
  }
  print_fit(what, points);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times training steps of growing sizes.", "scaling");
  int threads = 1, steps = 7;
  app.add_option("--threads", threads)->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--steps", steps, "timed steps of each size")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  measure("S", threads, steps, {512, 1024, 2048, 4096, 8192},
          [](TrainingShape& shape, index_t s) { shape.tokens = s; });
  measure("N", threads, steps, {32, 64, 128, 256, 512},
          [](TrainingShape& shape, index_t n) { shape.anchors = n; });
  measure("V", threads, steps, {2048, 4096, 8192, 16384, 32768},
          [](TrainingShape& shape, index_t v) { shape.config.vocabulary = v; });
}
