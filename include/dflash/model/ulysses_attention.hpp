#pragma once

#include <utility>
#include <vector>

#include "dflash/comm/sequence_parallel_group.hpp"
#include "dflash/model/attention.hpp"
#include "dflash/model/head_exchange.hpp"
#include "dflash/model/ulysses_plan.hpp"

namespace dflash {

/// Attention over a batch that is spread over the ranks of a sequence group (DeepSpeed-Ulysses,
/// arXiv:2309.14509, and a ring of context stripes). Outside, a rank holds some rows of all heads;
/// inside, all block rows of some heads, and its stripe of the context. Exchanges only move
/// elements, so each is the other's inverse and adjoint: values and gradients are exact for any
/// number of rows, heads and ranks. Parts of the keys are merged by their log-sum-exp.
template <Backend B, class C = SingleProcess>
class UlyssesAttention {
 public:
  using backend_type = B;
  using T = typename B::value_type;
  using A = typename B::accumulator_type;

  struct Context {
    typename LocalAttention<B>::Context local;  // of a group of one
    Tensor<B, T, 3> k, v, dk, dv;               // (stripe's rows, own kv heads, D)
    HeadExchange<B, C> exchange;
    In<T, 3> rows;  // the shape of this rank's keys, (S, kv heads, D)
  };
  struct Saved {
    typename LocalAttention<B>::Saved local;
    HeadExchange<B, C> exchange;
    In<T, 3> q_rows, k_rows;     // the shapes of this rank's, (N * K, heads or kv heads, D)
    In<T, 3> y;                  // (N * K, heads, D), this rank's rows
    Tensor<B, T, 3> q, k, v;     // (all block rows or the ring index's, own heads, D)
    Tensor<B, A, 3> lse;         // (all block rows, own heads, 1), of this stripe's keys
    Tensor<B, A, 3> merged_lse;  // (N * K, heads, 1), of all keys; if there is a ring
  };

  /// The group outlives the attention.
  UlyssesAttention(B& backend, SequenceParallelGroup<C>& group)
      : backend_(&backend), group_(&group), local_(backend) {}

  B& backend() const { return *backend_; }

  AttentionPlaces<T> open_context(index_t rows, HeadSizes sizes, const AttentionRule& rule,
                                  Context& c) const {
    if (alone()) return local_.open_context(rows, sizes, rule, c.local);
    const Spread at(*group_, rule, sizes);
    const index_t all = at.plan.layout.stripe(rank()).local(at.plan.context_total);
    c.k = heads_tensor<T>(all, at.kv_count, sizes.dim);
    c.v = heads_tensor<T>(all, at.kv_count, sizes.dim);
    c.rows = {nullptr, {rows, sizes.kv_heads, sizes.dim}};
    c.exchange = exchange();
    auto [k, v] = c.exchange.open_to_heads(at.context(c.rows, c.k), at.context(c.rows, c.v));
    return {{}, std::move(k), std::move(v)};
  }
  void begin_context(const AttentionRule&, Context& c) const {
    if (!alone()) c.exchange.send();
  }

  AttentionPlaces<T> open(index_t rows, HeadSizes sizes, const AttentionRule& rule,
                          Saved& s) const {
    if (alone()) return local_.open(rows, sizes, rule, s.local);
    const Spread at(*group_, rule, sizes);
    s.q = heads_tensor<T>(at.all_rows, at.query_count, sizes.dim);
    s.k = heads_tensor<T>(at.ring_rows, at.kv_count, sizes.dim);
    s.v = heads_tensor<T>(at.ring_rows, at.kv_count, sizes.dim);
    s.q_rows = {nullptr, {rows, sizes.heads, sizes.dim}};
    s.k_rows = {nullptr, {rows, sizes.kv_heads, sizes.dim}};
    s.exchange = exchange();
    auto [q, k, v] = s.exchange.open_to_heads(at.queries(s.q_rows, s.q), at.keys(s.k_rows, s.k),
                                              at.keys(s.k_rows, s.v));
    return {std::move(q), std::move(k), std::move(v)};
  }

  void forward(const AttentionRule& rule, Out<T, 3> y, Context& c, Saved& s) const {
    if (alone()) return local_.forward(rule, y, c.local, s.local);
    const index_t rows = y.shape[0], heads = y.shape[1], dim = y.shape[2];
    const Spread at(*group_, rule, {heads, s.k_rows.shape[1], dim});
    s.y = y;
    s.exchange.send();
    s.exchange.finish_to_heads(at.queries(s.q_rows, s.q), at.keys(s.k_rows, s.k),
                               at.keys(s.k_rows, s.v));
    c.exchange.finish_to_heads(at.context(c.rows, c.k), at.context(c.rows, c.v));

    auto part = heads_tensor<T>(at.all_rows, at.query_count, dim);
    s.lse = heads_tensor<A>(at.all_rows, at.query_count, 1);
    attention(*backend_, s.q.view(), all_keys(c, s), at.rule, part.view(), flat(s.lse));

    auto out = exchange();
    const auto y_lane = at.queries(y, part);
    if (at.plan.layout.ring == 1) {
      out.start_to_rows(y_lane);
      fill(*backend_, y, T(0));
      out.finish_to_rows(
          [&](index_t worker, View<const T, 3> piece) {
            add_heads(piece, at.query_heads, worker, y);
          },
          y_lane);
      return;
    }
    s.merged_lse = heads_tensor<A>(rows, heads, 1);
    const auto lse_lane = at.queries(s.merged_lse.view(), s.lse);
    out.start_to_rows(y_lane, lse_lane);
    fill(*backend_, y, T(0));
    fill(*backend_, s.merged_lse.view(), -std::numeric_limits<A>::infinity());
    out.finish_to_rows(
        [&](index_t worker, View<const T, 3> piece, View<const A, 3> piece_lse) {
          merge_attention(*backend_, piece, reshape<2>(piece_lse, {piece.shape[0], piece.shape[1]}),
                          at.query_heads[std::size_t(worker)].begin, y, flat(s.merged_lse));
        },
        y_lane, lse_lane);
  }

  void backward(In<T, 3> dy, const AttentionRule& rule, Context& c, Saved& s, Out<T, 3> dq,
                Out<T, 3> dk, Out<T, 3> dv) const {
    if (alone()) return local_.backward(dy, rule, c.local, s.local, dq, dk, dv);
    const index_t heads = dq.shape[1], dim = dq.shape[2];
    const Spread at(*group_, rule, {heads, dk.shape[1], dim});
    auto delta = heads_tensor<A>(dy.shape[0], heads, 1);
    head_dots(*backend_, s.y, dy, flat(delta));
    auto dy_heads = heads_tensor<T>(at.all_rows, at.query_count, dim);
    auto delta_heads = heads_tensor<A>(at.all_rows, at.query_count, 1);
    auto in = exchange();
    const auto dy_lane = at.queries(dy, dy_heads);
    const auto delta_lane = at.queries(delta.view(), delta_heads);
    if (at.plan.layout.ring == 1) {
      in.start_to_heads(dy_lane, delta_lane);
      in.finish_to_heads(dy_lane, delta_lane);
    } else {
      const auto lse_lane = at.queries(s.merged_lse.view(), s.lse);
      in.start_to_heads(dy_lane, delta_lane, lse_lane);
      in.finish_to_heads(dy_lane, delta_lane, lse_lane);
    }

    auto dq_heads = zeros(s.q), dk_heads = zeros(s.k), dv_heads = zeros(s.v);
    c.dk = zeros(c.k), c.dv = zeros(c.v);
    attention_backward(*backend_, s.q.view(), all_keys(c, s), at.rule, flat(s.lse),
                       flat(delta_heads), dy_heads.view(), dq_heads.view(),
                       KeyValue<T>{c.dk.view(), c.dv.view(), dk_heads.view(), dv_heads.view()});

    auto out = exchange();
    const auto q_lane = at.queries(dq, dq_heads);
    const auto k_lane = at.keys(dk, dk_heads), v_lane = at.keys(dv, dv_heads);
    out.start_to_rows(q_lane, k_lane, v_lane);
    c.exchange.start_to_rows(at.context(c.rows, c.dk), at.context(c.rows, c.dv));
    out.finish_to_rows(
        [&](index_t worker, View<const T, 3> q_piece, View<const T, 3> k_piece,
            View<const T, 3> v_piece) {
          add_heads(q_piece, at.query_heads, worker, dq);
          add_heads(k_piece, at.kv_heads, worker, dk);
          add_heads(v_piece, at.kv_heads, worker, dv);
        },
        q_lane, k_lane, v_lane);
  }

  void end_context(const AttentionRule& rule, Context& c, Out<T, 3> dk, Out<T, 3> dv) const {
    if (alone()) return local_.end_context(rule, c.local, dk, dv);
    const index_t kv_heads = dk.shape[1];
    const Spread at(*group_, rule, {kv_heads * rule.heads.group, kv_heads, dk.shape[2]});
    c.exchange.finish_to_rows(
        [&](index_t worker, View<const T, 3> k_piece, View<const T, 3> v_piece) {
          add_heads(k_piece, at.kv_heads, worker, dk);
          add_heads(v_piece, at.kv_heads, worker, dv);
        },
        at.context(c.rows, c.dk), at.context(c.rows, c.dv));
    c.dk = {}, c.dv = {};
  }

 private:
  /// Where rows and heads lie, for the exchanges of this rank.
  struct Spread {
    UlyssesPlan plan;
    AttentionRule rule;  // of what this rank computes
    index_t all_rows, ring_rows, query_count, kv_count;
    std::vector<Range> query_rows, key_rows, context_rows, query_heads, kv_heads;  // (P)

    Spread(const SequenceParallelGroup<C>& group, const AttentionRule& whole, HeadSizes sizes)
        : plan{group.layout(),     sizes.heads,           sizes.kv_heads,
               sizes.dim,          whole.mask.block_size, whole.mask.context_total,
               whole.mask.blocks()},
          rule(whole) {
      plan.check();
      const index_t me = group.rank();
      const Range ring_blocks = plan.layout.ring_blocks(me, plan.blocks_total);
      all_rows = plan.blocks_total * plan.block_size;
      ring_rows = ring_blocks.size() * plan.block_size;
      query_count = plan.query_heads(me).size();
      kv_count = plan.key_heads(me).size();
      rule.heads.first = plan.query_heads(me).begin;
      rule.mask.stripe = plan.layout.stripe(me);
      rule.mask.own_blocks = ring_blocks;
      index_t context_row = 0;
      for (index_t p = 0; p < plan.ranks(); ++p) {
        const Range blocks = plan.layout.blocks(p, plan.blocks_total);
        const Range rows{blocks.begin * plan.block_size, blocks.end * plan.block_size};
        const index_t first = ring_blocks.begin * plan.block_size;
        const bool near = plan.same_ring(p, me);
        const index_t context = near ? plan.context_rows(p) : 0;
        query_rows.push_back(rows);
        key_rows.push_back(near ? Range{rows.begin - first, rows.end - first} : Range{});
        context_rows.push_back({context_row, context_row + context});
        context_row += context;
        query_heads.push_back(plan.query_heads(p));
        kv_heads.push_back(near ? plan.key_heads(p) : Range{});
      }
    }

    template <class U, class V>
    auto queries(View<U, 3> outside, V& inside) const {
      return lane(outside, inside, query_rows, query_heads);
    }
    template <class U, class V>
    auto keys(View<U, 3> outside, V& inside) const {
      return lane(outside, inside, key_rows, kv_heads);
    }
    template <class U, class V>
    auto context(View<U, 3> outside, V& inside) const {
      return lane(outside, inside, context_rows, kv_heads);
    }

   private:
    template <class U, class V>
    static auto lane(View<U, 3> outside, V& inside, const std::vector<Range>& rows,
                     const std::vector<Range>& heads) {
      return HeadLane<std::remove_const_t<U>>{outside, inside.view(), &rows, &heads};
    }
  };

  bool alone() const { return group_->layout().ranks() == 1; }
  index_t rank() const { return group_->rank(); }
  HeadExchange<B, C> exchange() const { return {*backend_, group_->sequence()}; }

  template <class U>
  Tensor<B, U, 3> heads_tensor(index_t rows, index_t heads, index_t dim) const {
    return Tensor<B, U, 3>(*backend_, {rows, heads, dim});
  }
  Tensor<B, T, 3> zeros(const Tensor<B, T, 3>& like) const {
    const auto v = like.view();
    auto t = heads_tensor<T>(v.shape[0], v.shape[1], v.shape[2]);
    fill(*backend_, t.view(), T(0));
    return t;
  }
  static View<A, 2> flat(Tensor<B, A, 3>& t) {
    return reshape<2>(t.view(), {t.view().shape[0], t.view().shape[1]});
  }
  static KeyValue<const T> all_keys(Context& c, Saved& s) {
    return {c.k.view(), c.v.view(), s.k.view(), s.v.view()};
  }
  /// y(:, heads of `worker`) += piece.
  void add_heads(View<const T, 3> piece, const std::vector<Range>& heads, index_t worker,
                 Out<T, 3> y) const {
    if (piece.size() == 0) return;
    const index_t dim = y.shape[2];
    add_columns(*backend_, reshape<2>(piece, {piece.shape[0], piece.shape[1] * dim}),
                heads[std::size_t(worker)].begin * dim,
                reshape<2>(y, {y.shape[0], y.shape[1] * dim}));
  }

  B* backend_;
  SequenceParallelGroup<C>* group_;
  LocalAttention<B> local_;
};

}  // namespace dflash
