#pragma once

#include <concepts>

#include "dflash/core/attention_rule.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// What a DFlashBlock needs of its attention: the only part of a layer that may communicate.
/// `forward` writes y; `saved` may keep views of q, kv and y, which live until backward.
/// `backward` adds to dq and dkv.
///                     q, y, dy, dq (N * K, heads, D)  kv, dkv: context (S, kv, D), block (N * K,
///                     kv, D)
template <class A, class B = typename A::backend_type, class T = typename B::value_type>
concept Attention = Backend<B> &&
    requires(const A& a, In<T, 3> q, KeyValue<const T> kv, const AttentionRule& rule, Out<T, 3> y,
             typename A::Saved& saved, KeyValue<T> dkv) {
  { a.backend() } -> std::same_as<B&>;
  a.forward(q, kv, rule, y, saved);
  a.backward(q, rule, saved, y, dkv);  // (dy, rule, saved, dq, dkv)
};

/// Attention whose rows and keys all lie here.
template <Backend B>
class LocalAttention {
 public:
  using backend_type = B;
  using T = typename B::value_type;

  struct Saved {
    In<T, 3> q, y;
    KeyValue<const T> kv;
    Tensor<B, typename B::accumulator_type, 2> lse;  // (N * K, heads)
  };

  explicit LocalAttention(B& backend) : backend_(&backend) {}
  B& backend() const { return *backend_; }

  void forward(In<T, 3> q, KeyValue<const T> kv, const AttentionRule& rule, Out<T, 3> y,
               Saved& saved) const {
    saved.q = q, saved.kv = kv, saved.y = y;
    saved.lse = Tensor<B, typename B::accumulator_type, 2>(*backend_, {q.shape[0], q.shape[1]});
    attention(*backend_, q, kv, rule, y, saved.lse.view());
  }

  void backward(In<T, 3> dy, const AttentionRule& rule, Saved& saved, Out<T, 3> dq,
                KeyValue<T> dkv) const {
    attention_backward(*backend_, saved.q, saved.kv, rule, saved.y, saved.lse.view(), dy, dq, dkv);
  }

 private:
  B* backend_;
};

}  // namespace dflash
