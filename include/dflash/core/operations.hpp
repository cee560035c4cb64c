#pragma once

#include <concepts>
#include <cstdint>

#include "dflash/core/attention_rule.hpp"
#include "dflash/core/cross_entropy_part.hpp"
#include "dflash/core/head_places.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"

namespace dflash {

enum class Rotate { forward, backward };

/// What becomes of a result: it is added to what lies there, or takes its place.
enum class Result { added, written };

/// One AdamW step over a range of parameters (decoupled weight decay, arXiv:1711.05101).
struct AdamWStep {
  double rate, beta1, beta2, eps, decay;
  double gradient_scale;  // multiplies the gradient first: 1 / denominator, times the clip's factor
  double correction1, correction2;  // 1 - beta^t
};

/// One of several products that read the same rows: y = x w^T + bias, an empty bias being none.
///                                                                 x (N, I)  w (O, I)  y (N, O)
template <class Matrix, class T>
struct FrozenProduct {
  const Matrix* w;
  View<const T, 1> bias;
  View<T, 2> y;
};

/// What a backend computes: free functions, found by the backend's type. To port the library to a
/// new device, write these. In is read, Out is written; a *_backward function adds to its outputs,
/// unless it says otherwise. Activations and weights are in the value type T; gradients of weights
/// and whatever sums over many rows are in the accumulator type A. Where a backend says that it
/// KeepsBfloat16Rows, a table and the rows of products may lie in bfloat16 as well (InRows), and
/// rms_norm, swiglu and swiglu_backward write such rows (OutRows).
template <class B, class T = typename B::value_type, class A = typename B::accumulator_type>
concept Operations = requires(B& b, In<T, 2> x, In<T, 2> w, StoredRows<const T> rows,
                              StoredRows<T> to, Out<T, 2> y, In<T, 1> scale, A eps, View<A, 1> rstd,
                              In<A, 1> saved_rstd, Out<A, 1> dscale, Out<A, 2> dw, Out<T, 3> heads,
                              View<const index_t, 1> position, View<const double, 1> frequency,
                              View<const std::int32_t, 1> ids, View<std::int32_t, 1> best,
                              View<std::uint8_t, 1> correct, In<T, 3> q, KeyValue<const T> kv,
                              KeyValue<T> dkv, AttentionRule rule, View<A, 2> lse,
                              In<A, 2> saved_lse, Out<A, 1> flat, In<A, 1> flat_in, AdamWStep step,
                              const typename B::FrozenMatrix& f, View<CrossEntropyPart<A>, 1> part,
                              Result result, HeadPlaces<T> places) {
  fill(b, y, T(0));              // y = value
  add(b, x, y);                  // y += x
  add_rows(b, scale, y);         // y(n) += x               x (C)  y (N, C)
  scale_rows(b, saved_rstd, y);  // y(n) *= x(n)            x (N)  y (N, C)
  sum_rows(b, x, dscale);        // y += sum over n of x(n) x (N, C)  y (C)
  gather_rows(b, rows, ids, y);  // y(n) = w(ids(n))       w (V, C)  ids, y (N)
  scatter_rows(b, x, ids, y);    // y(ids(n)) = x(n), ids distinct
  linear(b, rows, w, y);         // y = x w^T               x (N, I)  w (O, I)  y (N, O)
  linear_backward_input(b, rows, w, y, result);                // dx += dy w    dy (N, O)  w (O, I)
  linear_backward_weight(b, rows, rows, dw, result);           // dw += dy^T x  dy (N, O)  x (N, I)
  { freeze(b, w) } -> std::same_as<typename B::FrozenMatrix>;  // w prepared once, for:
  linear(b, rows, f, y);                                       // y = x w^T
  rms_norm(b, x, scale, eps, to, rstd);  // y = x rstd scale        x, y (N, C)  scale (C)  rstd (N)
  rms_norm_backward(b, x, scale, saved_rstd, x, y, dscale);  // (x, scale, rstd, dy, dx, dscale)
  rope_table(b, position, frequency, 1.0, y, y);  // cos, sin (N, D/2) of position * frequency
  rope(b, x, x, Rotate::forward, heads);          // in place          heads (N, heads, D)
  // Each head normalised, then rotated: (x, scale, eps, cos, sin, y, rstd); and from the gradient
  // of the rotated heads (x, scale, rstd, cos, sin, dy, dx, dscale), dx written.
  rms_norm_rope(b, q, scale, eps, x, x, places, rstd);
  rms_norm_rope_backward(b, q, scale, saved_rstd, x, x, q, heads, dscale);
  swiglu(b, x, x, to);                    // y = silu(gate) up
  swiglu_backward(b, x, x, x, to, to);    // (gate, up, dy, dgate, dup), dup maybe dy
  attention(b, q, kv, rule, heads, lse);  // y = softmax(scale q k^T where mask) v
  head_dots(b, q, q, lse);                // delta(n, h) = <y(n, h), dy(n, h)>
  attention_backward(b, q, kv, rule, saved_lse, saved_lse, q, heads, dkv);  // (.., lse, delta, dy,
                                                                            // dq, dkv)
  copy_columns(b, x, index_t(0), y);                         // y(n, c) = x(n, first + c)
  add_columns(b, x, index_t(0), y);                          // y(n, first + c) += x(n, c)
  merge_attention(b, q, saved_lse, index_t(0), heads, lse);  // one more part of the keys
  // The head's cross entropy without logits in memory: of each row nll = -log softmax(x
  // w^T)[label], whether the label is the largest logit, and d nll / dx.  x, dx (R, H)  w (V, H)
  linear_cross_entropy(b, x, rows, ids, rstd, correct, y);
  // The same in parts of the vocabulary, dx not yet divided by the sum of exponentials and without
  // the label's share; and, once the parts are joined, dx(n) = scale(n) dx(n) + label_share(n)
  // w(ids(n)), the latter if ids(n) is a row of w.
  linear_cross_entropy_part(b, x, rows, ids, part, y);
  linear_cross_entropy_merge(b, rows, ids, saved_rstd, saved_rstd, y);
  argmax_rows(b, x, best);  // first largest of each row
  { sum_of_squares(b, flat_in) } -> std::same_as<double>;
  adamw(b, flat_in, step, flat, flat, flat);  // (gradient, step, weight, m, v)
};

}  // namespace dflash
