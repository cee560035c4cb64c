#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

/// y = softmax(scale q k^T, where the mask lets it) v, and lse = log sum exp of each row's scores,
/// kept for backward. A row that sees no key gets y = 0 and lse = -infinity.
///                                                 q, y (N * K, heads, D)  lse (N * K, heads)
template <class T>
void attention(CpuBackend<T>& backend, In<T, 3> q, KeyValue<const std::type_identity_t<T>> kv,
               AttentionRule rule, Out<T, 3> y, Out<T, 2> lse) {
  const index_t heads = q.shape[1], dim = q.shape[2], size = rule.mask.block_size;
  expects(q.shape[0] == rule.mask.blocks() * size, "attention: rows must be blocks * block size");
  const T none = -std::numeric_limits<T>::infinity();
  auto score_buffer = backend.template allocate<T>(kv.k_context.shape[0] + size);
  T* score = score_buffer.data();
  for (index_t row = 0; row < q.shape[0]; ++row) {
    const index_t block = row / size;
    const Range context = rule.mask.context(block, row % size);
    const Range own = rule.mask.own(block, row % size);
    const index_t seen = context.size(), keys = seen + own.size();
    for (index_t h = 0; h < heads; ++h) {
      const index_t g = rule.heads.kv(h);
      const auto k = [&](index_t j) {
        return j < seen ? &kv.k_context(context.begin + j, g, 0)
                        : &kv.k_block(own.begin + j - seen, g, 0);
      };
      const auto v = [&](index_t j) {
        return j < seen ? &kv.v_context(context.begin + j, g, 0)
                        : &kv.v_block(own.begin + j - seen, g, 0);
      };
      T top = none;
      for (index_t j = 0; j < keys; ++j) {
        T s = 0;
        for (index_t d = 0; d < dim; ++d) s += q(row, h, d) * k(j)[d];
        score[j] = s * T(rule.scale);
        top = std::max(top, score[j]);
      }
      T sum = 0;
      for (index_t j = 0; j < keys; ++j) sum += score[j] = std::exp(score[j] - top);
      lse(row, h) = keys > 0 ? top + std::log(sum) : none;
      for (index_t d = 0; d < dim; ++d) y(row, h, d) = 0;
      for (index_t j = 0; j < keys; ++j)
        for (index_t d = 0; d < dim; ++d) y(row, h, d) += score[j] / sum * v(j)[d];
    }
  }
}

}  // namespace dflash
