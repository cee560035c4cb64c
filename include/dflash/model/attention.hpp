#pragma once

#include <concepts>

#include "dflash/core/attention_rule.hpp"
#include "dflash/core/head_places.hpp"
#include "dflash/core/host_vector.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

/// Where an attention wants the queries, keys and values of some rows: in its own memory, or in
/// what it sends. Of context rows there are no queries.
template <class T>
struct AttentionPlaces {
  HostVector<HeadPart<T>> q, k, v;
};

/// What a DFlashBlock needs of its attention: the only part of a layer that may communicate.
/// Keys and values of the context come first, since they do not depend on the blocks: they are
/// written to the places of `open_context`, `begin_context` may send them ahead, and `end_context`
/// adds what comes back for them. Then queries, keys and values of the blocks are written to those
/// of `open`, and `forward` writes y, which lives until backward. `backward` adds to dq, dk and dv.
///                 q, y, dy, dq (N * K, heads, D)  k, v, dk, dv (S or N * K, kv heads, D)
template <class A, class B = typename A::backend_type, class T = typename B::value_type>
concept Attention = Backend<B> &&
    requires(const A& a, index_t rows, HeadSizes sizes, In<T, 3> in, Out<T, 3> out,
             const AttentionRule& rule, typename A::Context& context, typename A::Saved& saved) {
  { a.backend() } -> std::same_as<B&>;
  { a.open_context(rows, sizes, rule, context) } -> std::same_as<AttentionPlaces<T>>;
  a.begin_context(rule, context);
  { a.open(rows, sizes, rule, saved) } -> std::same_as<AttentionPlaces<T>>;
  a.forward(rule, out, context, saved);                 // (rule, y, ...)
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
    In<T, 3> k, v;                 // (S, kv heads, D)
    Tensor<B, T, 3> own_k, own_v;  // what they show, unless it is kept elsewhere
    Tensor<B, T, 3> dk, dv;
  };
  struct Saved {
    Tensor<B, T, 3> q, k, v;
    In<T, 3> y;
    Tensor<B, A, 2> lse;  // (N * K, heads)
  };

  explicit LocalAttention(B& backend) : backend_(&backend) {}
  B& backend() const { return *backend_; }

  AttentionPlaces<T> open_context(index_t rows, HeadSizes sizes, const AttentionRule&,
                                  Context& context) const {
    context.own_k = tensor(rows, sizes.kv_heads, sizes.dim);
    context.own_v = tensor(rows, sizes.kv_heads, sizes.dim);
    use_context(context.own_k.view(), context.own_v.view(), context);
    return {{}, {all_heads(context.own_k.view())}, {all_heads(context.own_v.view())}};
  }
  void begin_context(const AttentionRule&, Context&) const {}
  /// A context whose keys and values are kept elsewhere, in place of both.      k, v (S, kv heads,
  /// D)
  void use_context(In<T, 3> k, In<T, 3> v, Context& context) const { context.k = k, context.v = v; }

  AttentionPlaces<T> open(index_t rows, HeadSizes sizes, const AttentionRule&, Saved& s) const {
    s.q = tensor(rows, sizes.heads, sizes.dim);
    s.k = tensor(rows, sizes.kv_heads, sizes.dim);
    s.v = tensor(rows, sizes.kv_heads, sizes.dim);
    return {{all_heads(s.q.view())}, {all_heads(s.k.view())}, {all_heads(s.v.view())}};
  }
  void forward(const AttentionRule& rule, Out<T, 3> y, Context& context, Saved& s) const {
    s.y = y;
    s.lse = Tensor<B, A, 2>(*backend_, {y.shape[0], y.shape[1]});
    attention(*backend_, s.q.view(), keys(context, s), rule, y, s.lse.view());
  }

  void backward(In<T, 3> dy, const AttentionRule& rule, Context& context, Saved& saved,
                Out<T, 3> dq, Out<T, 3> dk, Out<T, 3> dv) const {
    Tensor<B, A, 2> delta(*backend_, {dy.shape[0], dy.shape[1]});
    head_dots(*backend_, saved.y, dy, delta.view());
    context.dk = zeros(context.k), context.dv = zeros(context.v);
    attention_backward(*backend_, saved.q.view(), keys(context, saved), rule, saved.lse.view(),
                       delta.view(), dy, dq,
                       KeyValue<T>{context.dk.view(), context.dv.view(), dk, dv});
  }

  void end_context(const AttentionRule&, Context& context, Out<T, 3> dk, Out<T, 3> dv) const {
    add(*backend_, context.dk.view(), dk);
    add(*backend_, context.dv.view(), dv);
    context.dk = {}, context.dv = {};
  }

 private:
  static KeyValue<const T> keys(const Context& context, const Saved& s) {
    return {context.k, context.v, s.k.view(), s.v.view()};
  }
  Tensor<B, T, 3> tensor(index_t rows, index_t heads, index_t dim) const {
    return Tensor<B, T, 3>(*backend_, {rows, heads, dim});
  }
  Tensor<B, T, 3> zeros(In<T, 3> like) const {
    auto t = tensor(like.shape[0], like.shape[1], like.shape[2]);
    fill(*backend_, t.view(), T(0));
    return t;
  }

  B* backend_;
};

}  // namespace dflash
