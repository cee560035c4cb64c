#pragma once

#include <type_traits>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_float_backward.cuh"
#include "dflash/cuda/attention_hopper_key.cuh"
#include "dflash/cuda/attention_hopper_query.cuh"
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
  const AttentionShape& a = plan.shape();
  const KeyGradientWork work(backend, plan, Cut::keys, Cut::queries, D);
  launch(backend.stream(), attention_key_gradient_kernel<D>,
         dim3(plan.key_tiles(Cut::keys, work.parts().most), plan.used_kv_heads(), D / Cut::columns),
         Cut::threads, sizeof(typename Cut::Shared), a, work.parts(), q, kv, lse, delta, dy, dkv);
  work.template add_up<D, Cut::keys>(backend, plan, dkv);
}

/// Both kernels for Hopper.
template <int D>
void launch_backward_hopper(CudaBackend<bfloat16>& backend, const AttentionPlan<bfloat16>& plan,
                            In<bfloat16, 3> q, KeyValue<const bfloat16> kv, const float* lse,
                            const float* delta, In<bfloat16, 3> dy, bfloat16* dq,
                            KeyValue<bfloat16> dkv) {
  launch_query_gradient_hopper<D>(backend, plan, q.data, kv, lse, delta, dy.data, dq);
  launch_key_gradient_hopper<D>(backend, plan, q, kv, lse, delta, dy, dkv);
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
  detail::check_beside<T, float>(q, {dy, dq}, {lse, delta});
  detail::check_gradients<T>(kv, dkv);
  const cuda::AttentionPlan<T> plan(backend, q, kv, rule,
                                    {dy.data, dq.data, dkv.k_context.data, dkv.v_context.data,
                                     dkv.k_block.data, dkv.v_block.data});
  if (q.size() == 0) return;  // a rank may hold no heads
  if constexpr (std::is_same_v<T, float>) {
    cuda::launch_attention_float_backward(backend, plan, q.data, kv, lse.data, delta.data, dy.data,
                                          dq.data, dkv);
  } else if (cuda::hopper_goes_back(plan.shape())) {
    if (plan.shape().dim <= 64)
      cuda::launch_backward_hopper<64>(backend, plan, q, kv, lse.data, delta.data, dy, dq.data,
                                       dkv);
    else
      cuda::launch_backward_hopper<128>(backend, plan, q, kv, lse.data, delta.data, dy, dq.data,
                                        dkv);
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
