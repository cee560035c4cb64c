// Each operation of a draft with the shapes of qwen3-8b (H 4096, I 12288, 32/8 heads of 128,
// V 151936) in bfloat16, over the rows of 256 blocks of 16: milliseconds, and of the bytes that
// must cross the device's memory GB/s beside what a copy reaches, or of the operations TFLOP/s
// beside what a large square product reaches. Attention has a benchmark of its own.
//   operations_cuda [times each is timed, 20] [block rows, 4096] [tiles: only the head, by its
//   tiles]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "dflash/cuda.cuh"
#include "measure.cuh"

namespace {

using namespace dflash;
using namespace dflash_benchmark;
using T = bfloat16;
using B = CudaBackend<T>;

constexpr index_t hidden = 4096, intermediate = 12288, heads = 32, head_dim = 128,
                  vocabulary = 151936, parameters = index_t(1) << 28;

class Table {
 public:
  Table(B& backend, int times) : backend_(backend), times_(times) {
    constexpr index_t copied = index_t(1) << 30;
    auto from = backend.allocate<char>(copied), to = backend.allocate<char>(copied);
    gigabytes_ = 2.0 * double(copied) * 1e-6 / milliseconds(backend, times, [&] {
                   backend.copy(from.data(), to.data(), copied);
                 });
    teraflops_ = large_product_teraflops(backend, times);
    std::printf("copy %.0f GB/s, product of 8192 x 8192 x 8192 %.0f TFLOP/s\n", gigabytes_,
                teraflops_);
  }

  template <class F>
  void bytes(const char* name, double moved, F f) const {
    constexpr int together = 5;  // a launch by itself would count for some microseconds
    const double ms = milliseconds(backend_, times_, [&] {
      for (int i = 0; i < together; ++i) f();
    });
    row(name, ms / together, moved * 1e-6, "GB/s", gigabytes_);
  }
  template <class F>
  void operations(const char* name, double done, F f) const {
    row(name, milliseconds(backend_, times_, f), done * 1e-9, "TFLOP/s", teraflops_);
  }

  Tensor<B, T, 2> matrix(index_t rows, index_t columns) const {
    Tensor<B, T, 2> x(backend_, {rows, columns});
    randomize(backend_, x.view().data, x.size(), 0.5f, std::uint64_t(columns));
    return x;
  }
  Tensor<B, float, 1> floats(index_t n) const {
    Tensor<B, float, 1> x(backend_, {n});
    randomize(backend_, x.view().data, n, 0.5f, std::uint64_t(n));
    return x;
  }

  static double products(index_t rows, index_t columns, index_t depth) {
    return 2.0 * double(rows) * double(columns) * double(depth);
  }

 private:
  static void row(const char* name, double ms, double work, const char* unit, double limit) {
    std::printf("%-28s %9.4f ms  %8.1f %-8s %5.1f %%\n", name, ms, work / ms, unit,
                100 * work / ms / limit);
  }

  B& backend_;
  int times_;
  double gigabytes_ = 0, teraflops_ = 0;
};

void row_operations(B& b, const Table& table, index_t rows) {
  auto x = table.matrix(rows, hidden), y = table.matrix(rows, hidden),
       z = table.matrix(rows, hidden);
  auto scale = table.floats(hidden), rstd = table.floats(rows);
  auto weights = table.matrix(1, hidden);
  const View<T, 1> weight{weights.view().data, {hidden}};
  const double numbers = double(rows * hidden), each = sizeof(T);

  table.bytes("rms_norm", 2 * each * numbers,
              [&] { rms_norm(b, x.view(), weight, 1e-6f, y.view(), rstd.view()); });
  table.bytes("rms_norm_backward", 4 * each * numbers, [&] {
    rms_norm_backward(b, x.view(), weight, rstd.view(), y.view(), z.view(), scale.view());
  });
  const auto per_head = [&](Tensor<B, T, 2>& t) {
    return View<T, 2>{t.view().data, {rows * heads, head_dim}};
  };
  const View<T, 1> head_weight{weights.view().data, {head_dim}};
  auto head_scale = table.floats(head_dim), head_rstd = table.floats(rows * heads);
  table.bytes("rms_norm of heads", 2 * each * numbers,
              [&] { rms_norm(b, per_head(x), head_weight, 1e-6f, per_head(y), head_rstd.view()); });
  table.bytes("rms_norm_backward of heads", 4 * each * numbers, [&] {
    rms_norm_backward(b, per_head(x), head_weight, head_rstd.view(), per_head(y), per_head(z),
                      head_scale.view());
  });
  table.bytes("add", 3 * each * numbers, [&] { add(b, x.view(), y.view()); });
  table.bytes("sum_rows", each * numbers, [&] { sum_rows(b, x.view(), scale.view()); });
  table.bytes("copy_columns", 2 * each * numbers, [&] { copy_columns(b, x.view(), 0, y.view()); });

  const auto as_heads = [&](Tensor<B, T, 2>& t) {
    return View<T, 3>{t.view().data, {rows, heads, head_dim}};
  };
  auto cos = table.matrix(rows, head_dim / 2), sin = table.matrix(rows, head_dim / 2);
  Tensor<B, float, 2> delta(b, {rows, heads});
  table.bytes("rope", 2 * each * numbers,
              [&] { rope(b, cos.view(), sin.view(), Rotate::forward, as_heads(y)); });
  table.bytes("head_dots", 2 * each * numbers,
              [&] { head_dots(b, as_heads(x), as_heads(y), delta.view()); });

  Tensor<B, float, 1> turned_rstd(b, {rows * heads});
  const HeadPart<T> parts[] = {{y.view().data, 0, heads}};
  const auto turned = [&](Tensor<B, T, 2>& t) {
    return View<const T, 3>{t.view().data, {rows, heads, head_dim}};
  };
  table.bytes("rms_norm_rope", 2 * each * numbers, [&] {
    rms_norm_rope(b, turned(x), head_weight, 1e-6f, cos.view(), sin.view(), parts,
                  turned_rstd.view());
  });
  table.bytes("rms_norm_rope_backward", 3 * each * numbers, [&] {
    rms_norm_rope_backward(b, turned(x), head_weight, turned_rstd.view(), cos.view(), sin.view(),
                           turned(y), as_heads(z), head_scale.view());
  });

  auto embedding = table.matrix(vocabulary, hidden);
  std::vector<std::int32_t> ids(std::size_t(rows), 0);
  for (std::size_t i = 0; i < ids.size(); ++i)
    ids[i] = std::int32_t(i * 7919 % std::size_t(vocabulary));
  const auto tokens = uploaded(b, ids.data(), rows);
  table.bytes("gather_rows", 2 * each * numbers,
              [&] { gather_rows(b, embedding.view(), tokens.view(), y.view()); });
}

void mlp_operations(B& b, const Table& table, index_t rows) {
  auto gate = table.matrix(rows, intermediate), up = table.matrix(rows, intermediate),
       y = table.matrix(rows, intermediate), dgate = table.matrix(rows, intermediate),
       dup = table.matrix(rows, intermediate);
  const double numbers = double(rows * intermediate), each = sizeof(T);
  table.bytes("swiglu", 3 * each * numbers, [&] { swiglu(b, gate.view(), up.view(), y.view()); });
  table.bytes("swiglu_backward", 7 * each * numbers, [&] {
    swiglu_backward(b, gate.view(), up.view(), y.view(), dgate.view(), dup.view());
  });

  auto x = table.matrix(rows, hidden), w = table.matrix(intermediate, hidden);
  Tensor<B, float, 2> dw(b, {intermediate, hidden});
  fill(b, dw.view(), 0);
  const double work = Table::products(rows, intermediate, hidden);
  table.operations("linear", work, [&] { linear(b, x.view(), w.view(), y.view()); });
  table.operations("linear_backward_input", work,
                   [&] { linear_backward_input(b, gate.view(), w.view(), x.view()); });
  fill(b, x.view(), T(0.0f));
  table.operations("linear_backward_weight", work,
                   [&] { linear_backward_weight(b, gate.view(), x.view(), dw.view()); });
}

void optimizer(B& b, const Table& table) {
  auto gradient = table.floats(parameters), master = table.floats(parameters),
       m = table.floats(parameters), v = table.floats(parameters);
  fill(b, v.view(), 1);
  auto weight = table.matrix(1, parameters);
  const AdamWStep step{1e-4, 0.9, 0.95, 1e-8, 0.01, 1, 0.1, 0.05};
  const double numbers = double(parameters);
  table.bytes("adamw", 30 * numbers, [&] {
    adamw(b, gradient.view(), step, master.view(), m.view(), v.view(),
          View<T, 1>{weight.view().data, {parameters}});
  });
  table.bytes("sum_of_squares", 4 * numbers, [&] { sum_of_squares(b, gradient.view()); });
}

/// What the head's cross entropy reads and writes, and its operations.
struct HeadRows {
  Tensor<B, T, 2> x, w, dx;
  Tensor<B, float, 1> nll;
  Tensor<B, std::uint8_t, 1> correct;
  Tensor<B, std::int32_t, 1> label;
  double work;

  HeadRows(B& b, const Table& table, index_t rows)
      : x(table.matrix(rows, hidden)),
        w(table.matrix(vocabulary, hidden)),
        dx(table.matrix(rows, hidden)),
        nll(b, {rows}),
        correct(b, {rows}),
        label(uploaded(b, std::vector<std::int32_t>(std::size_t(rows), 11).data(), rows)),
        work(2 * Table::products(rows, vocabulary, hidden)) {}
};

void head(B& b, const Table& table, index_t rows) {
  HeadRows h(b, table, rows);
  const auto loss_under = [&](const auto& matrix) {
    linear_cross_entropy(b, h.x.view(), matrix, h.label.view(), h.nll.view(), h.correct.view(),
                         h.dx.view());
  };
  table.operations("linear_cross_entropy", h.work, [&] { loss_under(In<T, 2>(h.w.view())); });
  const auto quantised = float8_head(b, h.w.view());
  table.operations("linear_cross_entropy, fp8", h.work, [&] { loss_under(quantised); });
}

/// The head's cross entropy by rows and words of its tiles.
void head_tiles(B& b, const Table& table, index_t rows) {
  namespace kernels = dflash::cuda::detail;
  HeadRows h(b, table, rows);
  for (index_t tile_rows : {1020, 1024, 2048, 4096})
    for (index_t words : {2048, 4096, 8192, 16384})
      table.operations((std::to_string(tile_rows) + " x " + std::to_string(words)).c_str(), h.work,
                       [&] {
                         kernels::linear_cross_entropy<T>(b, h.x.view(), h.w.view(), h.label.view(),
                                                          h.nll.view(), h.correct.view(),
                                                          h.dx.view(), {tile_rows, words});
                       });
  for (index_t words : {4096, 8192, 16384}) {
    const Float8Head<T> quantised(b, h.w.view(), words);
    for (index_t tile_rows : {1020, 2048, 4096})
      table.operations(
          ("fp8, " + std::to_string(tile_rows) + " x " + std::to_string(words)).c_str(), h.work,
          [&] {
            kernels::run_over_logits<T>(
                b, h.x.view(), quantised, h.label.view(), b.fault(), tile_rows,
                kernels::whole_cross_entropy<T>(b, h.x.view(), h.w.view(), h.label.view(),
                                                h.nll.view(), h.correct.view(), h.dx.view()));
          });
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int times = count > 1 ? std::max(1, std::atoi(arguments[1])) : 20;
  const index_t rows = count > 2 ? std::max(1, std::atoi(arguments[2])) : 4096;
  cudaDeviceProp properties;
  cuda_expects(cudaGetDeviceProperties(&properties, 0), "the device");
  std::printf("%s, bfloat16, %td rows, median of %d\n", properties.name, rows, times);
  B backend;
  const Table table(backend, times);
  if (count > 3 && std::string(arguments[3]) == "tiles") {
    head_tiles(backend, table, rows);
    return 0;
  }
  row_operations(backend, table, rows);
  mlp_operations(backend, table, rows);
  optimizer(backend, table);
  head(backend, table, rows);
}
