#pragma once

#include <concepts>

#include "dflash/core/attention_rule.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// What a DFlashBlock needs of its attention: the only part of a layer that may communicate.
/// Keys and values of the context come first, since they do not depend on the blocks:
/// `begin_context` may send them ahead, and `end_context` adds what comes back for them. What is
/// passed as In lives until backward. `forward` writes y; `backward` adds to dq, dk and dv.
///                 q, y, dy, dq (N * K, heads, D)  k, v, dk, dv (S or N * K, kv heads, D)
template <class A, class B = typename A::backend_type, class T = typename B::value_type>
concept Attention = Backend<B> &&
    requires(const A& a, In<T, 3> in, Out<T, 3> out, const AttentionRule& rule,
             typename A::Context& context, typename A::Saved& saved) {
  { a.backend() } -> std::same_as<B&>;
  a.begin_context(in, in, rule, context);               // (k, v, rule, context)
  a.forward(in, in, in, rule, out, context, saved);     // (q, k, v, rule, y, ...)
  a.backward(in, rule, context, saved, out, out, out);  // (dy, rule, ..., dq, dk, dv)
  a.end_context(rule, context, out, out);               // (rule, context, dk, dv)
};

/// Attention whose rows and keys all lie here.
template <Backend B>
class LocalAttention {
 public:
  using backend_type = B;
  using T = typename B::value_type;
  using A = typename B::accumulator_type;

  struct Context {
    In<T, 3> k, v;  // (S, kv heads, D)
    Tensor<B, T, 3> dk, dv;
  };
  struct Saved {
    In<T, 3> q, k, v, y;
    Tensor<B, A, 2> lse;  // (N * K, heads)
  };

  explicit LocalAttention(B& backend) : backend_(&backend) {}
  B& backend() const { return *backend_; }

  void begin_context(In<T, 3> k, In<T, 3> v, const AttentionRule&, Context& context) const {
    context.k = k, context.v = v;
  }

  void forward(In<T, 3> q, In<T, 3> k, In<T, 3> v, const AttentionRule& rule, Out<T, 3> y,
               Context& context, Saved& saved) const {
    saved.q = q, saved.k = k, saved.v = v, saved.y = y;
    saved.lse = Tensor<B, A, 2>(*backend_, {q.shape[0], q.shape[1]});
    attention(*backend_, q, KeyValue<const T>{context.k, context.v, k, v}, rule, y,
              saved.lse.view());
  }

  void backward(In<T, 3> dy, const AttentionRule& rule, Context& context, Saved& saved,
                Out<T, 3> dq, Out<T, 3> dk, Out<T, 3> dv) const {
    Tensor<B, A, 2> delta(*backend_, {dy.shape[0], dy.shape[1]});
    head_dots(*backend_, saved.y, dy, delta.view());
    context.dk = zeros(context.k), context.dv = zeros(context.v);
    attention_backward(*backend_, saved.q,
                       KeyValue<const T>{context.k, context.v, saved.k, saved.v}, rule,
                       saved.lse.view(), delta.view(), dy, dq,
                       KeyValue<T>{context.dk.view(), context.dv.view(), dk, dv});
  }

  void end_context(const AttentionRule&, Context& context, Out<T, 3> dk, Out<T, 3> dv) const {
    add(*backend_, context.dk.view(), dk);
    add(*backend_, context.dv.view(), dv);
    context.dk = {}, context.dv = {};
  }

 private:
  Tensor<B, T, 3> zeros(In<T, 3> like) const {
    Tensor<B, T, 3> t(*backend_, {like.shape[0], like.shape[1], like.shape[2]});
    fill(*backend_, t.view(), T(0));
    return t;
  }

  B* backend_;
};

}  // namespace dflash
