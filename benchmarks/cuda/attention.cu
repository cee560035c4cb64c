// Attention of a draft with the shapes of qwen3-8b: 32 query heads and 8 key/value heads of 128,
// blocks of 16 rows, anchors spread evenly over one sample. First compares the kernels with those
// in float, then prints milliseconds, and TFLOP/s twice: of the (query, key) pairs that a row sees,
// and of all that the tiles compute, also as a part of what a large product reaches. On Hopper by
// its own kernels, elsewhere (or with times below 0) by those of warps.
//   attention_cuda [times each is timed, 20] [context rows x anchors, like 768x256]...

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "dflash/cuda/attention.cuh"
#include "dflash/cuda/attention_backward.cuh"
#include "dflash/cuda/backend.hpp"
#include "measure.cuh"

namespace {

using namespace dflash;
using namespace dflash_benchmark;

constexpr index_t heads = 32, kv_heads = 8, dim = 128, block_size = 16;
constexpr index_t block_pairs = block_size * heads / kv_heads;  // of one key/value head

template <class T>
struct Problem {
  using Gpu = CudaBackend<T>;
  Gpu& backend;
  index_t context, blocks, rows = blocks * block_size;
  std::vector<index_t> begin = std::vector<index_t>(std::size_t(blocks), 0), end = begin;
  Tensor<Gpu, index_t, 1> device_begin, device_end;
  Tensor<Gpu, T, 3> q{backend, {rows, heads, dim}}, y{backend, {rows, heads, dim}},
      dy{backend, {rows, heads, dim}}, dq{backend, {rows, heads, dim}};
  Tensor<Gpu, T, 3> kc{backend, {context, kv_heads, dim}}, vc{backend, {context, kv_heads, dim}},
      dkc{backend, {context, kv_heads, dim}}, dvc{backend, {context, kv_heads, dim}};
  Tensor<Gpu, T, 3> kb{backend, {rows, kv_heads, dim}}, vb{backend, {rows, kv_heads, dim}},
      dkb{backend, {rows, kv_heads, dim}}, dvb{backend, {rows, kv_heads, dim}};
  Tensor<Gpu, float, 2> lse{backend, {rows, heads}}, delta{backend, {rows, heads}};
  AttentionRule rule;

  Problem(Gpu& b, index_t s, index_t n) : backend(b), context(s), blocks(n) {
    for (index_t i = 0; i < blocks; ++i) end[std::size_t(i)] = context * (i + 1) / blocks;
    device_begin = uploaded(backend, begin.data(), blocks);
    device_end = uploaded(backend, end.data(), blocks);
    rule = {{device_begin.view(), device_end.view(), block_size, 0, context},
            {heads / kv_heads, 0},
            1 / std::sqrt(double(dim))};
    std::uint64_t key = 0;
    for (auto* x : {&q, &dy, &kc, &vc, &kb, &vb})
      randomize(backend, x->view().data, x->size(), 1.7320508f, ++key);  // of unit variance
    clear_gradients();
    std::vector<float> zeros(std::size_t(delta.size()), 0.0f);
    backend.upload(zeros.data(), delta.view().data, delta.size());
  }

  void clear_gradients() {
    for (auto* x : {&dq, &dkc, &dvc, &dkb, &dvb})
      cuda_expects(
          cudaMemsetAsync(x->view().data, 0, std::size_t(x->size()) * sizeof(T), backend.stream()),
          "zeros");
  }
  KeyValue<const T> keys() { return {kc.view(), vc.view(), kb.view(), vb.view()}; }
  KeyValue<T> key_gradients() { return {dkc.view(), dvc.view(), dkb.view(), dvb.view()}; }

  /// By the kernels of warps, or by those of Hopper's groups of warps.
  void forward(bool groups) {
    if constexpr (std::is_same_v<T, float>) {
      attention(backend, q.view(), keys(), rule, y.view(), lse.view());
    } else {
      const cuda::AttentionPlan<T> plan(backend, q.view(), keys(), rule, {});
      const auto launch = groups ? cuda::launch_attention_hopper<dim> : cuda::launch_attention<dim>;
      launch(backend, plan, q.view().data, keys(), y.view().data, lse.view().data);
    }
  }
  void backward(bool groups) {
    if constexpr (std::is_same_v<T, float>) {
      attention_backward(backend, q.view(), keys(), rule, lse.view(), delta.view(), dy.view(),
                         dq.view(), key_gradients());
    } else {
      query_gradient(groups);
      key_gradient(groups);
    }
  }
  void query_gradient(bool groups) {
    const cuda::AttentionPlan<T> plan(backend, q.view(), keys(), rule, {});
    const auto launch =
        groups ? cuda::launch_query_gradient_hopper<dim> : cuda::launch_query_gradient<dim>;
    launch(backend, plan, q.view().data, keys(), lse.view().data, delta.view().data, dy.view().data,
           dq.view().data);
  }
  void key_gradient(bool groups) {
    const cuda::AttentionPlan<T> plan(backend, q.view(), keys(), rule, {});
    const float *l = lse.view().data, *d = delta.view().data;
    if (groups)
      cuda::launch_key_gradient_hopper<dim>(backend, plan, q.view(), keys(), l, d, dy.view(),
                                            key_gradients());
    else
      cuda::launch_key_gradient<dim>(backend, plan, q.view().data, keys(), l, d, dy.view().data,
                                     key_gradients());
  }

  /// y, dq and the gradients of the keys and values, after a backward from zeros.
  std::vector<std::vector<float>> results() {
    std::vector<std::vector<float>> all;
    for (auto* x : {&y, &dq, &dkc, &dvc, &dkb, &dvb}) {
      std::vector<T> host(std::size_t(x->size()));
      backend.download(x->view().data, host.data(), x->size());
      all.emplace_back(host.size());
      for (std::size_t i = 0; i < host.size(); ++i) all.back()[i] = float(host[i]);
    }
    return all;
  }

  /// (query row, head, key) triples that the mask lets through.
  double useful() const {
    double pairs = 0;
    for (index_t e : end) pairs += double((e + block_size) * block_size * heads);
    return pairs;
  }
  /// Those that warps of `rows` (query row, head) pairs compute, in tiles of `keys`.
  double by_rows(index_t warp_pairs, index_t block_of_threads, index_t keys) const {
    const auto up = [](index_t n, index_t each) { return (n + each - 1) / each * each; };
    double pairs = 0;
    for (index_t first = 0; first < blocks * block_pairs; first += warp_pairs) {
      const index_t n = (first + warp_pairs - 1) / block_pairs;
      const index_t own = std::max<index_t>(1, block_of_threads / block_pairs) * block_size;
      pairs += double((up(end[std::size_t(n)], keys) + up(std::min(own, keys), keys)) * warp_pairs);
    }
    return pairs * kv_heads;
  }
  double by_keys(index_t keys) const {
    double pairs = 0;
    for (index_t key = 0; key < context; key += keys)
      for (index_t e : end)
        if (e > key) pairs += double(keys * block_pairs);
    pairs += double(rows) * double(keys / block_size * block_pairs);
    return pairs * kv_heads;
  }
};

struct Table {
  CudaBackend<bfloat16>& backend;
  int times;
  double product = large_product_teraflops(backend, times);

  template <class F>
  void row(const char* what, index_t context, index_t blocks, double useful, double computed,
           F f) const {
    const double ms = milliseconds(backend, times, f);
    std::printf("%-9s S %6td  N %4td %9.3f ms %7.1f TFLOP/s useful %7.1f computed %4.0f %%\n", what,
                context, blocks, ms, useful / ms * 1e-9, computed / ms * 1e-9,
                100 * computed / ms * 1e-9 / product);
  }
};

/// |a - b| / |b| of each result.
void compare(const char* what, const std::vector<std::vector<float>>& a,
             const std::vector<std::vector<float>>& b) {
  std::printf("%-15s differs from float by", what);
  const char* const names[] = {"y", "dq", "dk context", "dv context", "dk block", "dv block"};
  for (std::size_t k = 0; k < a.size(); ++k) {
    double error = 0, size = 0;
    for (std::size_t i = 0; i < a[k].size(); ++i) {
      error += std::pow(double(a[k][i]) - double(b[k][i]), 2);
      size += std::pow(double(b[k][i]), 2);
    }
    std::printf("  %s %.2e", names[k], std::sqrt(error / size));
  }
  std::printf("\n");
}

void check(CudaBackend<bfloat16>& backend, bool hopper) {
  CudaBackend<float> exact_backend;
  Problem<float> exact(exact_backend, 1000, 100);
  Problem<bfloat16> p(backend, 1000, 100);
  exact.forward(false);
  exact.backward(false);
  const auto expected = exact.results();
  for (const bool groups : {false, true}) {
    if (groups && !hopper) continue;
    p.clear_gradients();
    p.forward(groups);
    p.backward(groups);
    compare(groups ? "warp groups" : "warps", p.results(), expected);
  }
}

void measure(const Table& table, index_t context, index_t blocks, bool groups) {
  using Groups = cuda::HopperCut<dim>;
  using Forward = cuda::ForwardCut<dim>;
  using Query = cuda::QueryGradientCut<dim>;
  Problem<bfloat16> p(table.backend, context, blocks);
  const double product = 2.0 * dim, useful = product * p.useful();  // operations of one product
  const auto by_rows = [&](index_t warps, index_t rows, index_t keys, index_t group_keys) {
    return product * (groups ? p.by_rows(Groups::tile, Groups::rows, group_keys)
                             : p.by_rows(warps, rows, keys));
  };
  const double queries = by_rows(Query::warp_rows, Query::rows, Query::keys, Groups::tile),
               keys = product * p.by_keys(groups ? Groups::rows : cuda::KeyGradientCut<dim>::keys);
  table.row("forward", context, blocks, 2 * useful,
            2 * by_rows(Forward::warp_rows, Forward::rows, Forward::keys,
                        cuda::HopperForwardRing<dim>::keys),
            [&] { p.forward(groups); });
  table.row("dq", context, blocks, 3 * useful, 3 * queries, [&] { p.query_gradient(groups); });
  table.row("dk, dv", context, blocks, 4 * useful, 4 * keys, [&] { p.key_gradient(groups); });
  table.row("backward", context, blocks, 5 * useful, 3 * queries + 4 * keys,
            [&] { p.backward(groups); });
}

}  // namespace

int main(int count, char** arguments) {
  const int times = count > 1 ? std::atoi(arguments[1]) : 20;
  cudaDeviceProp properties;
  cuda_expects(cudaGetDeviceProperties(&properties, 0), "the device");
  CudaBackend<bfloat16> backend;
  const bool hopper = properties.major == 9;
  check(backend, hopper);
  const Table table{backend, std::max(1, std::abs(times))};
  std::printf("%s, median of %d, product of 8192 x 8192 x 8192 %.0f TFLOP/s\n", properties.name,
              table.times, table.product);
  std::vector<std::pair<index_t, index_t>> sizes;
  for (int i = 2; i < count; ++i) {
    long long context = 0, blocks = 0;
    const bool two = std::sscanf(arguments[i], "%lldx%lld", &context, &blocks) == 2;
    expects(two && context > 0 && blocks > 0, "a size is written 768x256: context rows x anchors");
    sizes.emplace_back(context, blocks);
  }
  if (sizes.empty())
    for (index_t context : {768, 3072, 32768})
      for (index_t blocks : {256, 512}) sizes.emplace_back(context, blocks);
  for (const auto& [context, blocks] : sizes) measure(table, context, blocks, hopper && times > 0);
}
