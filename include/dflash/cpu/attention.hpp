#pragma once

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/attention_factors.hpp"
#include "dflash/cpu/attention_of_few.hpp"
#include "dflash/cpu/attention_of_tiles.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash {

namespace detail {

/// Attention whose products are made of Factors.
template <class Factors, class T>
void attend(CpuBackend<T>& backend, View<const T, 3> q, const KeyValue<const T>& kv,
            const AttentionRule& rule, View<T, 3> y, View<T, 2> lse) {
  AttentionPlan plan(backend, rule, q.shape[1]);
  if (has_few_rows<T>(plan.rows(), q.shape[2]))
    AttentionOfFew<Factors, T>(backend, q, kv, rule.scale, plan).run(backend, y, lse);
  else
    AttentionOfTiles<Factors, T>(backend, q, kv, rule.scale, plan).run(backend, y, lse);
}

}  // namespace detail

/// y = softmax(scale q k^T, where the mask lets it) v, and lse = log sum exp of each row's scores,
/// kept for backward. A row that sees no key gets y = 0 and lse = -infinity. The bits of a row
/// depend on its q and on the keys and values that it sees, and on nothing else.
///                                                 q, y (N * K, heads, D)  lse (N * K, heads)
template <class T>
void attention(CpuBackend<T>& backend, In<T, 3> q, KeyValue<const std::type_identity_t<T>> kv,
               AttentionRule rule, Out<T, 3> y, Out<T, 2> lse) {
  detail::check_attention(q, kv, rule);
  detail::check_beside<T, T>(q, {y}, {lse});
  detail::with_factors(backend, rule.may_round, [&]<class Factors>(Factors) {
    detail::attend<Factors, T>(backend, q, kv, rule, y, lse);
  });
}

}  // namespace dflash
