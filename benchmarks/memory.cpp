// Operations that wait for memory beside plain loops with as many streams in and out, in turns:
// bytes a second of both.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <vector>

#include "dflash/cpu.hpp"
#include "machine_peak.hpp"

namespace {

using namespace dflash;
using namespace dflash_benchmark;
using Buffer = CpuBuffer<float>;

/// Large arrays, each filled once.
class Arrays {
 public:
  Arrays(CpuBackend<float>& backend, int count, index_t size) {
    for (int i = 0; i < count; ++i) {
      all_.push_back(backend.allocate<float>(size));
      fill(backend, View<float, 1>{all_.back().data(), {size}}, 0.01f);
    }
  }
  float* operator[](int i) { return all_[std::size_t(i)].data(); }

 private:
  std::vector<Buffer> all_;
};

/// to[0] ... to[Written - 1] get the sum of all `Read` arrays, which the first of them may be.
template <int Read, int Written>
void plain_loop(CpuBackend<float>& backend, Arrays& from, Arrays& to, index_t size) {
  backend.for_parts(size, 8, [&](Range part) {
    const float* x[Read];
    float* y[Written];
    for (int i = 0; i < Read; ++i) x[i] = from[i];
    for (int i = 0; i < Written; ++i) y[i] = to[i];
    for (index_t begin = part.begin; begin < part.end; begin += 16) {
      float sum[16] = {};
      for (int i = 0; i < Read; ++i)
        for (index_t l = 0; l < 16; ++l) sum[l] += x[i][begin + l];
      for (int i = 0; i < Written; ++i)
        for (index_t l = 0; l < 16; ++l) y[i][begin + l] = sum[l] * 0.1f;
    }
  });
}

/// Prints the better of several turns of each.
template <class Operation, class Plain>
void compare(const char* name, double bytes, Operation operation, Plain plain) {
  double ours = 1e30, loop = 1e30;
  for (int round = 0; round < 8; ++round) {
    ours = std::min(ours, seconds_of(operation));
    loop = std::min(loop, seconds_of(plain));
  }
  std::printf("%-18s %6.1f GB/s, plain loop %6.1f GB/s: %5.1f %%\n", name, bytes / ours / 1e9,
              bytes / loop / 1e9, 100 * loop / ours);
}

void run(int threads) {
  CpuBackend<float> backend(threads);
  const index_t rows = 16384, width = 1024, size = rows * width;  // 64 MiB an array
  Arrays x(backend, 4, size), y(backend, 3, size);
  Arrays scale(backend, 2, width), rstd(backend, 1, size / 32);
  const auto flat = [&](float* data) { return View<float, 1>{data, {size}}; };
  const auto matrix = [&](float* data) { return View<float, 2>{data, {rows, width}}; };
  const double array = sizeof(float) * double(size);
  std::printf("%d threads, arrays of %ld MiB\n", threads, long(size * 4 >> 20));
  const AdamWStep step{.rate = 1e-4,
                       .beta1 = 0.9,
                       .beta2 = 0.999,
                       .eps = 1e-8,
                       .decay = 0.01,
                       .gradient_scale = 1,
                       .correction1 = 0.1,
                       .correction2 = 0.001};
  // The loop writes over three of the arrays that it reads, as AdamW does.
  compare(
      "adamw", 7 * array,
      [&] { adamw(backend, flat(x[3]), step, flat(x[0]), flat(x[1]), flat(x[2])); },
      [&] { plain_loop<4, 3>(backend, x, x, size); });
  compare(
      "sum_of_squares", array, [&] { sum_of_squares(backend, flat(x[0])); },
      [&] {
        backend.for_parts(size, 1, [&](Range part) {
          float lane[64] = {};
          for (index_t i = part.begin; i + 64 <= part.end; i += 64)
            for (int l = 0; l < 64; ++l) lane[l] += x[0][i + l];
          for (const float l : lane) y[0][part.begin] += l;
        });
      });
  for (const index_t columns : {1024, 576, 160, 128, 64, 32}) {
    const index_t some = size / columns, used = some * columns;
    const auto matrix = [&](float* data) { return View<float, 2>{data, {some, columns}}; };
    const View<float, 1> gain{scale[0], {columns}}, dgain{scale[1], {columns}}, r{rstd[0], {some}};
    const double bytes = sizeof(float) * double(used);
    std::printf("rows of %ld\n", long(columns));
    compare(
        "rms_norm", 2 * bytes,
        [&] { rms_norm(backend, matrix(x[0]), gain, 1e-6f, matrix(y[0]), r); },
        [&] { plain_loop<1, 1>(backend, x, y, used); });
    compare(
        "rms_norm_backward", 4 * bytes,
        [&] {
          rms_norm_backward(backend, matrix(x[0]), gain, r, matrix(x[1]), matrix(x[2]), dgain);
        },
        [&] { plain_loop<3, 1>(backend, x, x, used); });
  }
  compare(
      "swiglu", 3 * array, [&] { swiglu(backend, matrix(x[0]), matrix(x[1]), matrix(y[0])); },
      [&] { plain_loop<2, 1>(backend, x, y, size); });
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Operations that wait for memory, beside plain loops");
  int threads = 1;
  app.add_option("--threads", threads)->capture_default_str()->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  run(threads);
}
