#pragma once

#include <cmath>
#include <string>

#include "dflash/core/operations.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/model/attention.hpp"
#include "dflash/model/draft_config.hpp"

namespace dflash {

/// The weights of one draft layer, and equally their gradients: same type, same names.
template <class T>
struct DFlashBlockWeights {
  View<T, 1> input_norm, q_norm, k_norm, post_norm;
  View<T, 2> q, k, v, o, gate, up, down;
  View<T, 1> q_bias, k_bias, v_bias, o_bias;  // empty unless the config has attention_bias

  /// Name in a checkpoint, member, extents: binding, saving and counting all walk this one list.
  template <class Self, class Visit>
  static void fields(Self& w, const DFlashShape& s, Visit&& visit) {
    const index_t q_rows = s.heads * s.head_dim, kv_rows = s.kv_heads * s.head_dim;
    visit("input_layernorm.weight", w.input_norm, s.hidden);
    visit("self_attn.q_proj.weight", w.q, q_rows, s.hidden);
    visit("self_attn.k_proj.weight", w.k, kv_rows, s.hidden);
    visit("self_attn.v_proj.weight", w.v, kv_rows, s.hidden);
    visit("self_attn.o_proj.weight", w.o, s.hidden, q_rows);
    if (s.attention_bias) {
      visit("self_attn.q_proj.bias", w.q_bias, q_rows);
      visit("self_attn.k_proj.bias", w.k_bias, kv_rows);
      visit("self_attn.v_proj.bias", w.v_bias, kv_rows);
      visit("self_attn.o_proj.bias", w.o_bias, s.hidden);
    }
    visit("self_attn.q_norm.weight", w.q_norm, s.head_dim);
    visit("self_attn.k_norm.weight", w.k_norm, s.head_dim);
    visit("post_attention_layernorm.weight", w.post_norm, s.hidden);
    visit("mlp.gate_proj.weight", w.gate, s.intermediate, s.hidden);
    visit("mlp.up_proj.weight", w.up, s.intermediate, s.hidden);
    visit("mlp.down_proj.weight", w.down, s.hidden, s.intermediate);
  }
};

/// Rotary tables of the rows at hand, and who sees whom.
template <class T>
struct BlockGeometry {
  In<T, 2> context_cos, context_sin;  // (S, D / 2)
  In<T, 2> block_cos, block_sin;      // (N * K, D / 2)
  BlockMask mask;
};

/// One layer of the draft (arXiv:2602.06036): block rows attend to the projected context and to
/// their own block. Everything is row by row except the attention, which alone may communicate.
template <Attention A>
class DFlashBlock {
 public:
  using AttentionType = A;
  using B = typename A::backend_type;
  using T = typename B::value_type;
  using Sum = typename B::accumulator_type;
  using Weights = DFlashBlockWeights<T>;
  using WeightGradients = DFlashBlockWeights<Sum>;
  using Matrix = Tensor<B, T, 2>;
  using Rows = StoredTensor<B>;  // which only linear layers read
  using Vector = Tensor<B, Sum, 1>;

  struct Projection {  // rows of heads, before they are normalised per head and rotated
    Matrix raw;
    Vector rstd;
  };
  /// Keys and values of the context rows: they depend on the fused features only.
  struct ContextSaved {
    InRows<T> context;  // the caller keeps it until backward
    Projection k;
    typename A::Context attention;
  };
  struct Saved {
    In<T, 2> x;                           // the caller keeps it until backward
    Matrix attended, residual, gate, up;  // what else backward needs it makes again
    Vector rstd, post_rstd;
    Projection q, k;
    typename A::Saved attention;
  };

  DFlashBlock(A attention, DFlashShape shape) : attention_(std::move(attention)), shape_(shape) {}

  const DFlashShape& shape() const { return shape_; }
  const A& attention() const { return attention_; }
  B& backend() const { return attention_.backend(); }

  /// Projects the fused features, `context` (S, H), to this layer's keys and values, and lets the
  /// attention send them where they are needed.
  void begin_context(const Weights& w, InRows<T> context, const BlockGeometry<T>& at,
                     ContextSaved& s) const {
    project_context(w, context, at,
                    attention_.open_context(context.shape[0], sizes(), rule(at.mask), s.attention),
                    s);
    attention_.begin_context(rule(at.mask), s.attention);
  }

  /// The same to other places, without sending: for keys and values that are kept elsewhere.
  void project_context(const Weights& w, InRows<T> context, const BlockGeometry<T>& at,
                       const AttentionPlaces<T>& places, ContextSaved& s) const {
    s.context = context;
    project(context, w.k, w.k_bias, w.k_norm, at.context_cos, at.context_sin, places.k, s.k);
    place_values(context, w.v, w.v_bias, places.v);
  }

  /// x (N * K, H) -> y (N * K, H), over the context that was begun.
  Matrix forward(const Weights& w, In<T, 2> x, const BlockGeometry<T>& at,
                 typename A::Context& context, Saved& s) const {
    s.x = x;
    {
      const Rows rows = norm(x, w.input_norm, s.rstd);
      const InRows<T> normed = rows.rows();
      const auto places = attention_.open(x.shape[0], sizes(), rule(at.mask), s.attention);
      project(normed, w.q, w.q_bias, w.q_norm, at.block_cos, at.block_sin, places.q, s.q);
      project(normed, w.k, w.k_bias, w.k_norm, at.block_cos, at.block_sin, places.k, s.k);
      place_values(normed, w.v, w.v_bias, places.v);
    }
    s.attended = Matrix(backend(), {x.shape[0], shape_.heads * shape_.head_dim});
    attention_.forward(rule(at.mask), heads(s.attended), context, s.attention);
    s.residual = times(s.attended.view(), w.o, w.o_bias);
    add(backend(), x, s.residual.view());
    {
      const Rows post = norm(s.residual.view(), w.post_norm, s.post_rstd);
      s.gate = times(post.rows(), w.gate);
      s.up = times(post.rows(), w.up);
    }
    Matrix y = times(activation(s).rows(), w.down);
    add(backend(), In<T, 2>(s.residual.view()), y.view());
    return y;
  }

  /// The gradient of x from that of y, both (N * K, H); y's and s are used up. The gradients g
  /// are added to or written; end_context adds the context's share.
  Matrix backward(const Weights& w, Matrix dy, const BlockGeometry<T>& at,
                  typename A::Context& context, Saved& s, WeightGradients& g, Result result) const {
    if (result == Result::written) clear_vectors(g);
    {
      Rows active = activation(s), dup;
      Rows& dgate = active;  // which is used up
      {
        Matrix room = like(s.gate);
        const Out<T, 2> dactive = room.view();
        times_backward(active.rows(), w.down, dy.view(), {dactive, Result::written},
                       {g.down, result});
        // Where both lie in T, dup takes the place of dactive.
        dup = active.rows().narrow() ? rows_like(s.up) : Rows(std::move(room));
        swiglu_backward(backend(), s.gate.view(), s.up.view(), dactive, dgate.rows(), dup.rows());
      }
      s.gate = Matrix();
      s.up = Matrix();
      const Rows post = norm(s.residual.view(), w.post_norm, s.post_rstd);
      Matrix dpost = like(s.residual);
      times_backward(post.rows(), w.gate, dgate.rows(), {dpost.view(), Result::written},
                     {g.gate, result});
      times_backward(post.rows(), w.up, dup.rows(), {dpost.view()}, {g.up, result});
      rms_norm_backward(backend(), s.residual.view(), w.post_norm, s.post_rstd.view(), dpost.view(),
                        dy.view(), g.post_norm);
    }
    const Matrix& dresidual = dy;  // from here on
    Matrix dattended = like(s.attended);
    times_backward(s.attended.view(), w.o, dresidual.view(), {dattended.view(), Result::written},
                   {g.o, result}, g.o_bias);

    Matrix dq = zeros(s.q.raw), dk = zeros(s.k.raw), dv = zeros(s.k.raw);
    attention_.backward(heads(dattended), rule(at.mask), context, s.attention, heads(dq), heads(dk),
                        heads(dv));
    const Rows normed = norm(s.x, w.input_norm, s.rstd);
    Matrix dnormed = like(dy);
    times_backward(normed.rows(), w.v, dv.view(), {dnormed.view(), Result::written}, {g.v, result},
                   g.v_bias);
    project_backward(normed.rows(), w.k, w.k_norm, at.block_cos, at.block_sin, s.k, dk,
                     dnormed.view(), {g.k, result}, g.k_bias, g.k_norm);
    project_backward(normed.rows(), w.q, w.q_norm, at.block_cos, at.block_sin, s.q, dq,
                     dnormed.view(), {g.q, result}, g.q_bias, g.q_norm);
    rms_norm_backward(backend(), s.x, w.input_norm, s.rstd.view(), dnormed.view(), dy.view(),
                      g.input_norm);
    return dy;
  }

  /// The context's share of backward: adds to the gradients g and to dcontext (S, H).
  void end_context(const Weights& w, const BlockGeometry<T>& at, ContextSaved& c,
                   WeightGradients& g, Out<T, 2> dcontext) const {
    Matrix dk = zeros(c.k.raw), dv = zeros(c.k.raw);
    attention_.end_context(rule(at.mask), c.attention, heads(dk), heads(dv));
    times_backward(c.context, w.v, dv.view(), {dcontext}, {g.v}, g.v_bias);
    project_backward(c.context, w.k, w.k_norm, at.context_cos, at.context_sin, c.k, dk, dcontext,
                     {g.k}, g.k_bias, g.k_norm);
  }

 private:
  AttentionRule rule(const BlockMask& mask) const {
    return {mask, {shape_.heads / shape_.kv_heads, 0}, 1 / std::sqrt(double(shape_.head_dim))};
  }
  HeadSizes sizes() const { return {shape_.heads, shape_.kv_heads, shape_.head_dim}; }
  View<T, 3> heads(Matrix& m) const { return as_heads(m.view(), shape_.head_dim); }

  /// Where a gradient goes, and how.
  template <class U>
  struct Gradient {
    Out<U, 2> to;
    Result result = Result::added;
  };

  Matrix like(const Matrix& m) const {
    return Matrix(backend(), {m.view().shape[0], m.view().shape[1]});
  }
  Rows rows_like(const Matrix& m) const {
    return rows_for_products(backend(), m.view().shape[0], m.view().shape[1]);
  }
  Matrix zeros(const Matrix& m) const {
    Matrix t = like(m);
    fill(backend(), t.view(), T(0));
    return t;
  }
  /// Zeros in the gradients that are sums over rows: those of norms and biases.
  void clear_vectors(WeightGradients& g) const {
    WeightGradients::fields(g, shape_, [&](const char*, auto& member, auto... extents) {
      if constexpr (sizeof...(extents) == 1) fill(backend(), member, Sum(0));
    });
  }
  void multiply(InRows<T> x, In<T, 2> w, In<T, 1> bias, Out<T, 2> y) const {
    linear(backend(), x, w, y);
    if (bias.data != nullptr) add_rows(backend(), bias, y);
  }
  Matrix times(InRows<T> x, In<T, 2> w, In<T, 1> bias = {}) const {
    Matrix y(backend(), {x.shape[0], w.shape[0]});
    multiply(x, w, bias, y.view());
    return y;
  }
  void times_backward(InRows<T> x, In<T, 2> w, InRows<T> dy, Gradient<T> dx, Gradient<Sum> dw,
                      Out<Sum, 1> dbias = {}) const {
    linear_backward_input(backend(), dy, w, dx.to, dx.result);
    linear_backward_weight(backend(), dy, x, dw.to, dw.result);
    if (dbias.data != nullptr) sum_rows(backend(), dy, dbias);
  }
  Rows norm(In<T, 2> x, In<T, 1> w, Vector& rstd) const {
    Rows y = rows_for_products(backend(), x.shape[0], x.shape[1]);
    rstd = Vector(backend(), {x.shape[0]});
    rms_norm(backend(), x, w, Sum(shape_.eps), y.rows(), rstd.view());
    return y;
  }
  /// What the MLP's last product takes.
  Rows activation(const Saved& s) const {
    Rows active = rows_like(s.gate);
    swiglu(backend(), s.gate.view(), s.up.view(), active.rows());
    return active;
  }
  void project(InRows<T> x, In<T, 2> w, In<T, 1> bias, In<T, 1> w_norm, In<T, 2> cos, In<T, 2> sin,
               HeadPlaces<T> places, Projection& s) const {
    s.raw = times(x, w, bias);
    s.rstd = Vector(backend(), {s.raw.size() / shape_.head_dim});
    rms_norm_rope(backend(), heads(s.raw), w_norm, Sum(shape_.eps), cos, sin, places,
                  s.rstd.view());
  }
  /// The values x w^T + bias; a place that takes whole rows is where the product goes itself.
  void place_values(InRows<T> x, In<T, 2> w, In<T, 1> bias, HeadPlaces<T> places) const {
    const index_t rows = x.shape[0], dim = shape_.head_dim;
    if (places.size() == 1 && places[0].count == shape_.kv_heads)
      return multiply(x, w, bias, {places[0].data, {rows, w.shape[0]}});
    const Matrix v = times(x, w, bias);
    for (const HeadPart<T>& part : places)
      if (rows * part.count > 0)
        copy_columns(backend(), v.view(), part.first * dim,
                     View<T, 2>{part.data, {rows, part.count * dim}});
  }
  /// From dout, which becomes the gradient of the projection, adds to dx and the gradients.
  void project_backward(InRows<T> x, In<T, 2> w, In<T, 1> w_norm, In<T, 2> cos, In<T, 2> sin,
                        Projection& s, Matrix& dout, Out<T, 2> dx, Gradient<Sum> dw,
                        Out<Sum, 1> dbias, Out<Sum, 1> dw_norm) const {
    rms_norm_rope_backward(backend(), heads(s.raw), w_norm, s.rstd.view(), cos, sin, heads(dout),
                           heads(dout), dw_norm);
    times_backward(x, w, dout.view(), {dx}, dw, dbias);
  }

  A attention_;
  DFlashShape shape_;
};

}  // namespace dflash
