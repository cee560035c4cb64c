#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>

#include "dflash/core/attention_rule.hpp"
#include "dflash/core/operations.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/model/frozen_linear.hpp"
#include "dflash/model/parallel_linear.hpp"
#include "dflash/model/target_cut.hpp"

namespace dflash {

/// The rows of one forward through a target: their rotary tables, and the keys each sees.
template <class T>
struct DecoderRows {
  In<T, 2> cos, sin;                  // (n, D / 2)
  View<const index_t, 1> begin, end;  // (n): key rows [begin, end), the last its own
};

/// Keys and values of one layer: those of `first` earlier rows, then room for the rows at hand.
template <class T>
struct DecoderKeys {
  View<T, 3> k, v;  // (first + n, kv heads, D)
  index_t first;

  /// The first n of the rows at hand, of k or v.
  View<T, 3> fresh(View<T, 3> all, index_t n) const { return all.rows({first, first + n}); }
};

/// A layer makes its wide activations of so many rows at a time: long packs need no more memory.
inline constexpr index_t decoder_transform_rows = 1024;

/// One decoder layer of a Qwen3, Qwen2 or Llama target, frozen:
/// x += o attention(q, k, v of norm(x));  x += down (silu(gate) up of norm(x)).
/// Ranks of a group hold some heads and intermediate features each; two sums make x whole on all.
template <Backend B, Communicator C = SingleProcess>
class DecoderLayer {
 public:
  using T = typename B::value_type;

  /// Loads this rank's part of layer `index`. Error naming the tensor that is missing or of another
  /// shape.
  template <WeightSource W>
  DecoderLayer(B& backend, TensorParallelGroup<C>& group, const W& weights,
               const TargetConfig& config, index_t index,
               WeightStorage storage = WeightStorage::as_stored)
      : backend_(&backend),
        column_(backend, group),
        row_(backend, group),
        cut_(config, group.share()),
        head_dim_(config.head_dim),
        window_(config.windows[std::size_t(index)]),
        eps_(config.eps),
        storage_(storage) {
    const std::string at = "model.layers." + std::to_string(index) + ".", self = at + "self_attn.",
                      mlp = at + "mlp.";
    const index_t hidden = config.hidden, inner = config.intermediate;
    const auto norm = [&](const std::string& name, index_t size) {
      return load_tensor(backend, weights, name + ".weight", {size});
    };
    const auto matrix = [&](const std::string& name, const LinearShape& shape, Range rows,
                            Range columns) {
      return FrozenLinear<B>::load(backend, weights, name, shape, {rows, columns}, storage);
    };
    const auto of_heads = [&](Range heads) {
      return Range{heads.begin * head_dim_, heads.end * head_dim_};
    };
    const index_t q_size = config.heads * head_dim_, kv_size = config.kv_heads * head_dim_;
    const Range all{0, hidden}, q = of_heads(cut_.heads), kv = of_heads(cut_.kv_heads);
    input_norm_ = norm(at + "input_layernorm", hidden);
    post_norm_ = norm(at + "post_attention_layernorm", hidden);
    q_ = matrix(self + "q_proj", {q_size, hidden, config.qkv_bias}, q, all);
    k_ = matrix(self + "k_proj", {kv_size, hidden, config.qkv_bias}, kv, all);
    v_ = matrix(self + "v_proj", {kv_size, hidden, config.qkv_bias}, kv, all);
    o_ = matrix(self + "o_proj", {hidden, q_size, config.o_bias}, all, q);
    if (config.head_norms) {
      q_norm_ = norm(self + "q_norm", head_dim_);
      k_norm_ = norm(self + "k_norm", head_dim_);
    }
    gate_ = matrix(mlp + "gate_proj", {inner, hidden, config.mlp_bias}, cut_.intermediate, all);
    up_ = matrix(mlp + "up_proj", {inner, hidden, config.mlp_bias}, cut_.intermediate, all);
    down_ = matrix(mlp + "down_proj", {hidden, inner, config.mlp_bias}, all, cut_.intermediate);
  }

  /// x becomes the layer's output; the keys and values of its rows are written behind the earlier
  /// ones. A row's bits depend on the rows it sees alone.                                 x (n, H)
  void forward(Out<T, 2> x, const DecoderRows<T>& rows, const DecoderKeys<T>& keys) const {
    Activations q(*backend_, {x.shape[0], q_.outputs});
    const View<T, 3> k = keys.fresh(keys.k, x.shape[0]), v = keys.fresh(keys.v, x.shape[0]);
    {
      const Rows normed = norm(x, input_norm_);
      multiply(normed.rows(), {product(q_, q.view()), product(k_, flat(k)), product(v_, flat(v))});
    }
    turn(k, k_norm_, rows);
    finish(x, std::move(q), rows, keys);
  }

  /// The layer's output of some rows alone, with the same bits; keys and values of all of them are
  /// written. `few` is what `rows` is, of those.               x (n, H)  ids (m)  result (m, H)
  Tensor<B, T, 2> forward_some(In<T, 2> x, View<const std::int32_t, 1> ids,
                               const DecoderRows<T>& rows, const DecoderRows<T>& few,
                               const DecoderKeys<T>& keys) const {
    Activations y(*backend_, {ids.size(), x.shape[1]}), q(*backend_, {ids.size(), q_.outputs});
    const View<T, 3> k = keys.fresh(keys.k, x.shape[0]), v = keys.fresh(keys.v, x.shape[0]);
    {
      const Rows normed = norm(x, input_norm_);
      multiply(normed.rows(), {product(k_, flat(k)), product(v_, flat(v))});
      gather_rows(*backend_, normed.rows(), ids, y.view());
      multiply(y.view(), {product(q_, q.view())});
    }
    turn(k, k_norm_, rows);
    gather_rows(*backend_, x, ids, y.view());
    finish(y.view(), std::move(q), few, keys);
    return y;
  }

 private:
  using Activations = Tensor<B, T, 2>;
  using Rows = StoredTensor<B>;  // which only products read
  using Matrix = FrozenLinear<B>;
  using Product = FrozenProduct<typename B::FrozenMatrix, T>;

  /// What is left to do with rows whose queries are there, and all of whose keys.
  void finish(Out<T, 2> x, Activations q, const DecoderRows<T>& rows,
              const DecoderKeys<T>& keys) const {
    turn(as_heads(q.view(), head_dim_), q_norm_, rows);
    attend(x, std::move(q), rows, keys);
    for (index_t begin = 0; begin < x.shape[0]; begin += decoder_transform_rows)
      transform(x.rows({begin, std::min(begin + decoder_transform_rows, x.shape[0])}));
  }

  void attend(Out<T, 2> x, Activations q, const DecoderRows<T>& rows,
              const DecoderKeys<T>& keys) const {
    Activations attended(*backend_, {x.shape[0], q_.outputs});
    // A row's own key is the last of its context rather than a source of one row.
    BlockMask mask{rows.begin, rows.end};
    mask.own_blocks = {0, 0};
    if (window_ > 0) mask.window = window_ + 1;
    const AttentionRule rule{mask, cut_.groups, 1 / std::sqrt(double(head_dim_)), true};
    Tensor<B, typename B::accumulator_type, 2> lse(*backend_, {x.shape[0], cut_.heads.size()});
    const View<T, 3> own = keys.fresh(keys.k, 0);
    attention(*backend_, as_heads(View<const T, 2>(q.view()), head_dim_),
              KeyValue<const T>{keys.k, keys.v, own, own}, rule,
              as_heads(attended.view(), head_dim_), lse.view());
    add_product(attended.view(), o_, x);
  }

  void transform(Out<T, 2> x) const {
    Activations gate(*backend_, {x.shape[0], gate_.outputs}),
        up(*backend_, {x.shape[0], up_.outputs});
    {
      const Rows normed = norm(x, post_norm_);
      multiply(normed.rows(), {product(gate_, gate.view()), product(up_, up.view())});
    }
    const Out<T, 2> gated = gate.view();
    Rows active = rounds() ? room(x.shape[0], gate_.outputs) : Rows(std::move(gate));
    swiglu(*backend_, gated, up.view(), active.rows());
    gate = Activations();
    up = Activations();
    add_product(active.rows(), down_, x);
  }

  /// Whether products round what they read to bfloat16: those with weights in int8 never do.
  bool rounds() const {
    if constexpr (KeepsBfloat16Rows<B>)
      return backend_->products_round() && storage_ != WeightStorage::int8;
    return false;
  }
  Rows room(index_t rows, index_t columns) const {
    if (!rounds()) return Activations(*backend_, {rows, columns});
    return rows_for_products(*backend_, rows, columns);
  }
  Rows norm(In<T, 2> x, const Tensor<B, T, 1>& scale) const {
    Rows y = room(x.shape[0], x.shape[1]);
    normalize(x, scale, y.rows());
    return y;
  }
  void normalize(In<T, 2> x, const Tensor<B, T, 1>& scale, OutRows<T> y) const {
    using A = typename B::accumulator_type;
    Tensor<B, A, 1> rstd(*backend_, {x.shape[0]});
    rms_norm(*backend_, x, scale.view(), A(eps_), y, rstd.view());
  }
  void multiply(InRows<T> x, std::initializer_list<Product> products) const {
    column_.forward(x, std::span(products.begin(), products.size()));
  }
  static Product product(const Matrix& m, Out<T, 2> y) { return {&m.weight, m.bias.view(), y}; }
  /// y += x m^T, summed over the ranks.
  void add_product(InRows<T> x, const Matrix& m, Out<T, 2> y) const {
    Activations product(*backend_, {y.shape[0], y.shape[1]});
    row_.forward(x, m.weight, m.bias.view(), product.view());
    add(*backend_, product.view(), y);
  }
  /// Normalises each head, where the model does, and rotates it to its row's position.
  void turn(View<T, 3> x, const Tensor<B, T, 1>& scale, const DecoderRows<T>& at) const {
    const View<T, 2> all = reshape<2>(x, {x.shape[0] * x.shape[1], x.shape[2]});
    if (scale.size() > 0) normalize(all, scale, all);
    rope(*backend_, at.cos, at.sin, Rotate::forward, x);
  }
  static View<T, 2> flat(View<T, 3> v) { return reshape<2>(v, {v.shape[0], v.stride()}); }

  B* backend_;
  ColumnParallelLinear<B, C> column_;
  RowParallelLinear<B, C> row_;
  TargetCut cut_;
  index_t head_dim_, window_;
  double eps_;
  WeightStorage storage_;
  Tensor<B, T, 1> input_norm_, post_norm_, q_norm_, k_norm_;  // the last two may be empty
  Matrix q_, k_, v_, o_, gate_, up_, down_;
};

}  // namespace dflash
