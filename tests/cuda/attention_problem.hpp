#pragma once

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cuda/support.hpp"

namespace dflash_test {

using dflash::AttentionRule;
using dflash::HeadGroups;
using dflash::KeyValue;
using dflash::Range;
using dflash::RingStripe;
using dflash::Tensor;

/// Another order of the emulated device's threads and blocks.
inline void shuffle_threads([[maybe_unused]] int seed) {
#if !defined(__CUDACC__)
  cuda_emulation::set_seed(std::uint64_t(seed) + 1);
#endif
}

/// What attention is asked, beside numbers.
struct Geometry {
  index_t dim, heads;
  HeadGroups groups;
  index_t block_size, window, context;
  std::vector<index_t> begin, end;
  RingStripe stripe = {};
  Range own_blocks = {0, -1};

  index_t blocks() const { return index_t(end.size()); }
  index_t rows() const { return blocks() * block_size; }
  index_t kv_heads() const { return groups.kv(heads - 1) + 1; }
  index_t context_rows() const { return stripe.local(context); }
  index_t own_rows() const {
    return ((own_blocks.end < 0 ? blocks() : own_blocks.end) - own_blocks.begin) * block_size;
  }
  double scale() const { return 1 / std::sqrt(double(dim)); }
};

/// Every tensor of attention, forward and backward, on the host.
template <class T>
struct Numbers {
  std::vector<T> q, y, dy, dq, kc, vc, kb, vb, dkc, dvc, dkb, dvb;

  explicit Numbers(const Geometry& g) {
    const index_t queries = g.rows() * g.heads * g.dim, context = g.context_rows() * key_step(g),
                  own = g.own_rows() * key_step(g);
    q = numbers(queries, 1), dy = numbers(queries, 2), dq = numbers(queries, 3);
    y.assign(q.size(), T(7));
    kc = numbers(context, 4), vc = numbers(context, 5), dkc = numbers(context, 6);
    dvc = numbers(context, 7);
    kb = numbers(own, 8), vb = numbers(own, 9), dkb = numbers(own, 10), dvb = numbers(own, 11);
  }
  /// The same in another type, exactly.
  template <class U>
  Numbers(const Geometry& g, const Numbers<U>& o) : Numbers(g) {
    const auto convert = [](const std::vector<U>& from, std::vector<T>& to) {
      for (std::size_t i = 0; i < from.size(); ++i) to[i] = T(float(from[i]));
    };
    convert(o.q, q), convert(o.dy, dy), convert(o.dq, dq), convert(o.kc, kc), convert(o.vc, vc);
    convert(o.kb, kb), convert(o.vb, vb), convert(o.dkc, dkc), convert(o.dvc, dvc);
    convert(o.dkb, dkb), convert(o.dvb, dvb);
  }

 private:
  static index_t key_step(const Geometry& g) { return g.kv_heads() * g.dim; }
  static std::vector<T> numbers(index_t n, std::uint64_t key) {
    std::vector<T> x;
    for (float v : random<float>(n, key)) x.push_back(T(float(bfloat16(v))));
    return x;
  }
};

/// Runs attention of any backend on a copy of the numbers, as its memory wants it.
template <class B>
class Run {
 public:
  using T = typename B::value_type;
  using A = typename B::accumulator_type;

  Run(B& backend, const Geometry& g, const Numbers<T>& x)
      : backend_(backend),
        g_(g),
        begin_(uploaded(backend, g.begin.data(), g.blocks())),
        end_(uploaded(backend, g.end.data(), g.blocks())),
        lse_(backend, {g.rows() * g.heads}),
        delta_(backend, {g.rows() * g.heads}) {
    for (auto* from :
         {&x.q, &x.y, &x.dy, &x.dq, &x.kc, &x.vc, &x.kb, &x.vb, &x.dkc, &x.dvc, &x.dkb, &x.dvb})
      tensors_.push_back(uploaded(backend, from->data(), index_t(from->size())));
  }

  void forward() { attention(backend_, queries(0), keys(4), rule(), queries(1), rows(lse_)); }
  void backward() {
    attention_backward(backend_, queries(0), keys(4), rule(), rows(lse_), rows(delta_), queries(2),
                       queries(3), keys(8));
  }
  /// Forward by the kernels of warps, or by those of Hopper's groups of warps.
  template <int D>
  void forward_by(bool groups) {
    const KeyValue<const T> kv = keys(4);
    const dflash::cuda::AttentionPlan<T> plan(backend_, queries(0), kv, rule(), {queries(1).data});
    const auto launch =
        groups ? dflash::cuda::launch_attention_hopper<D> : dflash::cuda::launch_attention<D>;
    launch(backend_, plan, queries(0).data, kv, queries(1).data, rows(lse_).data);
  }
  template <int D>
  void backward_by(bool groups) {
    namespace cuda = dflash::cuda;
    const KeyValue<const T> kv = keys(4);
    const cuda::AttentionPlan<T> plan(backend_, queries(0), kv, rule(), {});
    const auto launch_dq =
        groups ? cuda::launch_query_gradient_hopper<D> : cuda::launch_query_gradient<D>;
    launch_dq(backend_, plan, queries(0).data, kv, rows(lse_).data, rows(delta_).data,
              queries(2).data, queries(3).data);
    if (!groups)
      cuda::launch_key_gradient<D>(backend_, plan, queries(0).data, kv, rows(lse_).data,
                                   rows(delta_).data, queries(2).data, keys(8));
    else if (cuda::hopper_goes_back(plan.shape()))
      cuda::launch_key_gradient_hopper<D>(backend_, plan, queries(0), kv, rows(lse_).data,
                                          rows(delta_).data, queries(2), keys(8));
  }
  bool hopper_goes_back() {
    return dflash::cuda::hopper_goes_back(
        dflash::cuda::AttentionPlan<T>(backend_, queries(0), keys(4), rule(), {}).shape());
  }
  void set(const std::vector<double>& lse, const std::vector<double>& delta) {
    const std::vector<A> l(lse.begin(), lse.end()), d(delta.begin(), delta.end());
    backend_.upload(l.data(), lse_.view().data, index_t(l.size()));
    backend_.upload(d.data(), delta_.view().data, index_t(d.size()));
  }

  std::vector<double> lse() { return wide(host(lse_)); }
  /// 1: y, 3: dq, 8..11: dk and dv of the context, of the blocks.
  std::vector<T> bits(std::size_t which) { return host(tensors_[which]); }
  std::vector<double> result(std::size_t which) { return wide(bits(which)); }
  static constexpr std::array<std::size_t, 5> gradients = {3, 8, 9, 10, 11};

 private:
  template <class U>
  std::vector<U> host(Tensor<B, U, 1>& x) {
    std::vector<U> to(at(x.size()));
    backend_.download(x.view().data, to.data(), x.size());
    return to;
  }
  template <class U>
  static std::vector<double> wide(const std::vector<U>& x) {
    std::vector<double> to;
    for (U v : x)
      if constexpr (std::is_same_v<U, bfloat16>)
        to.push_back(double(float(v)));
      else
        to.push_back(double(v));
    return to;
  }
  AttentionRule rule() {
    AttentionRule r;
    r.mask = {begin_.view(), end_.view(), g_.block_size, g_.window,
              g_.context,    g_.stripe,   g_.own_blocks};
    r.heads = g_.groups;
    r.scale = g_.scale();
    return r;
  }
  View<T, 3> queries(std::size_t which) {
    return reshape<3>(tensors_[which].view(), {g_.rows(), g_.heads, g_.dim});
  }
  View<A, 2> rows(Tensor<B, A, 1>& x) { return reshape<2>(x.view(), {g_.rows(), g_.heads}); }
  KeyValue<T> keys(std::size_t first) {
    const auto of = [&](std::size_t which, index_t n) {
      return reshape<3>(tensors_[which].view(), {n, g_.kv_heads(), g_.dim});
    };
    return {of(first, g_.context_rows()), of(first + 1, g_.context_rows()),
            of(first + 2, g_.own_rows()), of(first + 3, g_.own_rows())};
  }

  B& backend_;
  Geometry g_;
  Tensor<B, index_t, 1> begin_, end_;
  Tensor<B, A, 1> lse_, delta_;
  std::vector<Tensor<B, T, 1>> tensors_;
};

/// The CPU's results in double, from the same numbers.
struct Expected {
  std::vector<double> y, lse, delta;
  std::vector<std::vector<double>> gradients;

  template <class T>
  Expected(const Geometry& g, const Numbers<T>& x) {
    CpuBackend<double> backend;
    Run<CpuBackend<double>> run(backend, g, Numbers<double>(g, x));
    run.forward();
    y = run.result(1), lse = run.lse();
    delta.resize(lse.size());
    for (std::size_t i = 0; i < y.size(); ++i)
      delta[i / at(g.dim)] += y[i] * double(float(x.dy[i]));
    run.set(lse, delta);
    run.backward();
    for (std::size_t which : run.gradients) gradients.push_back(run.result(which));
  }
};

/// |a - b| / |b|, the Euclidean norms.
inline double relative(const std::vector<double>& a, const std::vector<double>& b) {
  double error = 0, size = 1e-30;
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(error / size);
}

/// Equal infinities, and finite numbers no further apart than `tolerance`.
inline bool close(const std::vector<double>& a, const std::vector<double>& b, double tolerance) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(a[i] == b[i] || std::abs(a[i] - b[i]) <= tolerance)) return false;
  return a.size() == b.size();
}

}  // namespace dflash_test
