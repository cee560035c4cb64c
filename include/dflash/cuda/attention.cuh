#pragma once

#include <type_traits>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_float.cuh"
#include "dflash/cuda/attention_forward.cuh"
#include "dflash/cuda/attention_hopper.cuh"

namespace dflash {

/// y = softmax(scale q k^T, where the mask lets it) v, and lse = log sum exp of each row's scores,
/// kept for backward. A row that sees no key gets y = 0 and lse = -infinity. Where a block has a
/// multiple of eight rows, the bits of a row do not depend on what is packed beside its sample; a
/// few rows at once have other bits than among many. Keys between the windows of blocks must be
/// finite.
///                                                 q, y (N * K, heads, D)  lse (N * K, heads)
template <class T>
void attention(CudaBackend<T>& backend, In<T, 3> q, KeyValue<const std::type_identity_t<T>> kv,
               AttentionRule rule, Out<T, 3> y, Out<float, 2> lse) {
  detail::check_beside<T, float>(q, {y}, {lse});
  const cuda::AttentionPlan<T> plan(backend, q, kv, rule, {y.data});
  if (q.size() == 0) return;  // a rank may hold no heads
  if constexpr (std::is_same_v<T, float>) {
    cuda::launch_attention_float(backend, plan, q.data, kv, y.data, lse.data);
  } else {
    const int dim = plan.shape().dim;
    if (cuda::hopper_attends(plan.shape()) && !cuda::attends_in_parts<128>(plan))
      return dim <= 64
                 ? cuda::launch_attention_hopper<64>(backend, plan, q.data, kv, y.data, lse.data)
                 : cuda::launch_attention_hopper<128>(backend, plan, q.data, kv, y.data, lse.data);
    cuda::with_head_size(dim, [&](auto size) {
      cuda::launch_attention<size.value>(backend, plan, q.data, kv, y.data, lse.data);
    });
  }
}

}  // namespace dflash
