// Attention of evenly spread blocks. Arguments: query heads, key/value heads, head size, context
// rows, blocks, block size, threads. Only keys that a row sees are counted.

#include "dflash/cpu.hpp"
#include "rate.hpp"

namespace {

using namespace dflash;
using namespace dflash_benchmark;

struct Problem {
  index_t heads, kv_heads, dim, context, blocks, size, rows;
  std::vector<float> q, y, dy, dq, kc, vc, kb, vb, dkc, dvc, dkb, dvb, lse, delta;
  std::vector<index_t> begin, end;
  AttentionRule rule;
  double operations = 0;  // of forward

  explicit Problem(const benchmark::State& state)
      : heads(state.range(0)),
        kv_heads(state.range(1)),
        dim(state.range(2)),
        context(state.range(3)),
        blocks(state.range(4)),
        size(state.range(5)),
        rows(blocks * size) {
    q = y = dy = dq = random(rows * heads * dim, 1);
    kc = vc = dkc = dvc = random(context * kv_heads * dim, 2);
    kb = vb = dkb = dvb = random(rows * kv_heads * dim, 3);
    lse = delta = random(rows * heads, 4);
    for (index_t n = 0; n < blocks; ++n) {
      begin.push_back(0);
      end.push_back(context * (n + 1) / blocks);
      operations += 4.0 * double((end.back() + size) * size * heads * dim);
    }
    rule.mask.begin = {begin.data(), {blocks}};
    rule.mask.end = {end.data(), {blocks}};
    rule.mask.block_size = size;
    rule.mask.context_total = context;
    rule.heads.group = heads / kv_heads;
    rule.scale = 1 / std::sqrt(double(dim));
  }
  View<float, 3> of_queries(std::vector<float>& x) { return {x.data(), {rows, heads, dim}}; }
  View<float, 2> of_rows(std::vector<float>& x) { return {x.data(), {rows, heads}}; }
  KeyValue<float> keys(std::vector<float>& a, std::vector<float>& b, std::vector<float>& c,
                       std::vector<float>& d) {
    return {{a.data(), {context, kv_heads, dim}},
            {b.data(), {context, kv_heads, dim}},
            {c.data(), {rows, kv_heads, dim}},
            {d.data(), {rows, kv_heads, dim}}};
  }
};

void forward(benchmark::State& state) {
  Problem p(state);
  CpuBackend<float> backend(int(state.range(6)));
  for (auto _ : state)
    attention(backend, p.of_queries(p.q), p.keys(p.kc, p.vc, p.kb, p.vb), p.rule, p.of_queries(p.y),
              p.of_rows(p.lse));
  set_rate(state, p.operations);
}

void backward(benchmark::State& state) {
  Problem p(state);
  CpuBackend<float> backend(int(state.range(6)));
  const auto kv = p.keys(p.kc, p.vc, p.kb, p.vb);
  attention(backend, p.of_queries(p.q), kv, p.rule, p.of_queries(p.y), p.of_rows(p.lse));
  head_dots(backend, p.of_queries(p.y), p.of_queries(p.dy), p.of_rows(p.delta));
  for (auto _ : state)
    attention_backward(backend, p.of_queries(p.q), kv, p.rule, p.of_rows(p.lse), p.of_rows(p.delta),
                       p.of_queries(p.dy), p.of_queries(p.dq), p.keys(p.dkc, p.dvc, p.dkb, p.dvb));
  set_rate(state, 2.5 * p.operations);
}

void shapes(benchmark::internal::Benchmark* b) {
  for (auto [heads, kv, dim, context, blocks, size] : {std::array<long, 6>{5, 5, 32, 256, 64, 4},
                                                       {9, 3, 64, 512, 64, 8},
                                                       {9, 3, 64, 512, 512, 1},
                                                       {14, 2, 64, 1024, 64, 16},
                                                       {16, 8, 128, 1024, 64, 16},
                                                       {16, 8, 128, 1024, 1, 1}})
    for (long threads : {1, 2}) b->Args({heads, kv, dim, context, blocks, size, threads});
  b->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK(forward)->Apply(shapes);
BENCHMARK(backward)->Apply(shapes);

}  // namespace
