#pragma once

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/attention_gradients.hpp"
#include "dflash/cpu/attention_parts.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

/// delta(n, h) = <y(n, h), dy(n, h)>: what the softmax's backward needs of the output.
///                                                 y, dy (N, heads, D)  delta (N, heads)
template <class T>
void head_dots(CpuBackend<T>& backend, In<T, 3> y, In<T, 3> dy, Out<T, 2> delta) {
  const index_t dim = y.shape[2];
  expects(y.size() == delta.size() * dim && dy.size() == y.size(), "head_dots: shapes differ");
  backend.for_parts(delta.size(), dim, [&](Range part) {
    detail::on_path(
        backend.path(), [=]() __attribute__((always_inline)) {
          for (index_t i = part.begin; i < part.end; ++i)
            delta.data[i] = T(detail::sum_of_products(dim, y.data + i * dim, dy.data + i * dim));
        });
  });
}

/// Adds to dq and dkv. Probabilities are recomputed from lse, not stored. `delta` is head_dots of
/// the whole output; with lse of all keys, parts of the keys may be treated apart.
///                               q, dy, dq (N * K, heads, D)  lse, delta (N * K, heads)
template <class T>
void attention_backward(CpuBackend<T>& backend, In<T, 3> q,
                        KeyValue<const std::type_identity_t<T>> kv, AttentionRule rule,
                        In<T, 2> lse, In<T, 2> delta, In<T, 3> dy, Out<T, 3> dq,
                        KeyValue<std::type_identity_t<T>> dkv) {
  using namespace detail;
  const index_t dim = q.shape[2];
  check_attention(q, kv, rule);
  check_beside<T, T>(q, {dy, dq}, {lse, delta});
  check_gradients<T>(kv, dkv);
  AttentionPlan plan(backend, rule, q.shape[1]);
  const index_t work = 2 * q.size() * (kv.k_context.shape[0] + key_chunk);
  const GradientParts<T> parts(backend, plan, kv, dkv);
  const AttentionGradients<T> gradients(backend, {q, dy, lse, delta, kv, dq}, rule.scale, plan);
  backend.parallel_for(parts.count() * plan.kv_heads(), work, [&](index_t task, int thread) {
    const index_t g = task % plan.kv_heads(), part = parts.count() - 1 - task / plan.kv_heads();
    const KeyValue<T> into = parts.clear(part, g, dim);
    for (index_t t = parts.tiles(part).begin; t < parts.tiles(part).end; ++t)
      gradients.add(plan.tile(t, g, thread), g, into, thread);
  });
  parts.add_up(backend);
}

}  // namespace dflash
