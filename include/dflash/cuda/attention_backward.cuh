#pragma once

#include <algorithm>
#include <type_traits>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_float_backward.cuh"
#include "dflash/cuda/attention_key_gradient.cuh"
#include "dflash/cuda/attention_query_gradient.cuh"

namespace dflash {

namespace cuda {

template <int D>
void launch_query_gradient(CudaBackend<bfloat16>& backend, const AttentionPlan<bfloat16>& plan,
                           const bfloat16* q, KeyValue<const bfloat16> kv, const float* lse,
                           const float* delta, const bfloat16* dy, bfloat16* dq) {
  using Cut = QueryGradientCut<D>;
  launch(backend.stream(), attention_query_gradient_kernel<D>,
         dim3(plan.query_tiles(Cut::rows), plan.used_kv_heads()), Cut::threads,
         sizeof(typename Cut::Shared), plan.shape(), q, kv, lse, delta, dy, dq);
}

template <int D>
void launch_key_gradient(CudaBackend<bfloat16>& backend, const AttentionPlan<bfloat16>& plan,
                         const bfloat16* q, KeyValue<const bfloat16> kv, const float* lse,
                         const float* delta, const bfloat16* dy, KeyValue<bfloat16> dkv) {
  using Cut = KeyGradientCut<D>;
  // Four waves of two blocks for each of the multiprocessors of a large GPU; a number of the
  // problem's alone, so that results do not depend on the GPU.
  constexpr index_t wanted = 1024, most_parts = 8;
  const AttentionShape& a = plan.shape();
  const index_t context_tiles = blocks_for(a.context_rows, Cut::keys),
                tasks = std::max<index_t>(1, context_tiles * plan.used_kv_heads()),
                query_tiles = plan.query_tiles(Cut::queries);
  KeyGradientParts parts;
  parts.most = int(
      std::max<index_t>(1, std::min({most_parts, (wanted + tasks - 1) / tasks, query_tiles / 2})));
  typename CudaBackend<bfloat16>::template Buffer<float> sums;
  typename CudaBackend<bfloat16>::template Buffer<int> counts;
  if (parts.most > 1) {
    sums =
        backend.template allocate<float>(2 * parts.most * index_t(a.context_rows) * a.kv_heads * D);
    counts = backend.template allocate<int>(tasks);
    parts.rows = int((query_tiles + parts.most - 1) / parts.most) * Cut::queries;
    parts.sums = sums.data();
    parts.counts = counts.data();
  }
  launch(backend.stream(), attention_key_gradient_kernel<D>,
         dim3(plan.key_tiles(Cut::keys, parts.most), plan.used_kv_heads(), D / Cut::columns),
         Cut::threads, sizeof(typename Cut::Shared), a, parts, q, kv, lse, delta, dy, dkv);
  if (parts.most > 1)
    launch(backend.stream(), add_key_gradients_kernel<D>,
           blocks_for(index_t(a.context_rows) * plan.used_kv_heads() * a.dim, 256), 256, 0, a,
           parts, int(plan.used_kv_heads()), dkv);
}

}  // namespace cuda

/// Adds to dq and dkv. Probabilities are recomputed from lse, not stored. `delta` is head_dots of
/// the whole output; with lse of all keys, parts of the keys may be treated apart. Without atomics:
/// the bits of the result depend on the arguments alone.
///                               q, dy, dq (N * K, heads, D)  lse, delta (N * K, heads)
template <class T>
void attention_backward(CudaBackend<T>& backend, In<T, 3> q,
                        KeyValue<const std::type_identity_t<T>> kv, AttentionRule rule,
                        In<float, 2> lse, In<float, 2> delta, In<T, 3> dy, Out<T, 3> dq,
                        KeyValue<std::type_identity_t<T>> dkv) {
  const cuda::AttentionPlan<T> plan(backend, q, kv, rule,
                                    {dy.data, dq.data, dkv.k_context.data, dkv.v_context.data,
                                     dkv.k_block.data, dkv.v_block.data});
  if constexpr (std::is_same_v<T, float>) {
    cuda::launch_attention_float_backward(backend, plan, q.data, kv, lse.data, delta.data, dy.data,
                                          dq.data, dkv);
  } else {
    cuda::with_head_size(plan.shape().dim, [&](auto size) {
      cuda::launch_query_gradient<size.value>(backend, plan, q.data, kv, lse.data, delta.data,
                                              dy.data, dq.data);
      cuda::launch_key_gradient<size.value>(backend, plan, q.data, kv, lse.data, delta.data,
                                            dy.data, dkv);
    });
  }
}

}  // namespace dflash
