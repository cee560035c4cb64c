#pragma once

#include <cmath>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// delta(n, h) = <y(n, h), dy(n, h)>: what the softmax's backward needs of the output.
///                                                 y, dy (N, heads, D)  delta (N, heads)
template <class T>
void head_dots(CpuBackend<T>&, In<T, 3> y, In<T, 3> dy, Out<T, 2> delta) {
  const index_t dim = y.shape[2];
  for (index_t i = 0; i < delta.size(); ++i) {
    T sum = 0;
    for (index_t d = 0; d < dim; ++d) sum += y.data[i * dim + d] * dy.data[i * dim + d];
    delta.data[i] = sum;
  }
}

/// Adds to dq and dkv. Probabilities are recomputed from lse, not stored. `delta` is head_dots of
/// the whole output; with lse of all keys, parts of the keys may be treated apart.
///                               q, dy, dq (N * K, heads, D)  lse, delta (N * K, heads)
template <class T>
void attention_backward(CpuBackend<T>&, In<T, 3> q, KeyValue<const std::type_identity_t<T>> kv,
                        AttentionRule rule, In<T, 2> lse, In<T, 2> delta, In<T, 3> dy, Out<T, 3> dq,
                        KeyValue<std::type_identity_t<T>> dkv) {
  const index_t heads = q.shape[1], dim = q.shape[2], size = rule.mask.block_size;
  expects(q.shape[0] == rule.mask.blocks() * size, "attention: rows must be blocks * block size");
  for (index_t row = 0; row < q.shape[0]; ++row) {
    const index_t block = row / size;
    const Range context = rule.mask.context(block, row % size);
    const Range own = rule.mask.own(block, row % size);
    for (index_t h = 0; h < heads; ++h) {
      const index_t g = rule.heads.kv(h);
      const auto visit = [&](const T* k, const T* v, T* dk, T* dv) {
        T s = 0, dp = 0;
        for (index_t d = 0; d < dim; ++d) {
          s += q(row, h, d) * k[d];
          dp += dy(row, h, d) * v[d];
        }
        const T p = std::exp(s * T(rule.scale) - lse(row, h)),
                ds = p * (dp - delta(row, h)) * T(rule.scale);
        for (index_t d = 0; d < dim; ++d) {
          dq(row, h, d) += ds * k[d];
          dk[d] += ds * q(row, h, d);
          dv[d] += p * dy(row, h, d);
        }
      };
      for (index_t j = context.begin; j < context.end; ++j)
        visit(&kv.k_context(j, g, 0), &kv.v_context(j, g, 0), &dkv.k_context(j, g, 0),
              &dkv.v_context(j, g, 0));
      for (index_t j = own.begin; j < own.end; ++j)
        visit(&kv.k_block(j, g, 0), &kv.v_block(j, g, 0), &dkv.k_block(j, g, 0),
              &dkv.v_block(j, g, 0));
    }
  }
}

}  // namespace dflash
