#pragma once

#include <algorithm>
#include <cmath>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/attention_parts.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

/// delta(n, h) = <y(n, h), dy(n, h)>: what the softmax's backward needs of the output.
///                                                 y, dy (N, heads, D)  delta (N, heads)
template <class T>
void head_dots(CpuBackend<T>& backend, In<T, 3> y, In<T, 3> dy, Out<T, 2> delta) {
  const index_t dim = y.shape[2];
  expects(y.size() == delta.size() * dim && dy.size() == y.size(), "head_dots: shapes differ");
  backend.for_parts(delta.size(), dim, [&](Range part) {
    detail::on_path(
        backend.path(), [=]() __attribute__((always_inline)) {
          for (index_t i = part.begin; i < part.end; ++i)
            delta.data[i] = T(detail::sum_of_products(dim, y.data + i * dim, dy.data + i * dim));
        });
  });
}

namespace detail {

/// score becomes the probability p = e^(score - lse), dp becomes p (dp - delta).
///                                         score, dp (rows, key_chunk)  lse, delta (rows)
template <int Width, class T>
void softmax_backward(CpuPath path, const KeyChunk& chunk, index_t heads, T* score, T* dp,
                      const T* lse, const T* delta) {
  on_path(
      path, [ =, &chunk ]() __attribute__((always_inline)) {
        for (index_t i = chunk.rows.begin; i < chunk.rows.end; ++i) {
          T* const p = score + i * key_chunk;
          T* const ds = dp + i * key_chunk;
          hide<Width>(chunk, chunk.visible[i / heads], p);
          const T base = std::isfinite(lse[i]) ? lse[i] : T(0), mean = delta[i];
          for (int j = 0; j < Width; ++j) {
            p[j] = exponential(p[j] - base);
            ds[j] = p[j] * (ds[j] - mean);
          }
        }
      });
}

}  // namespace detail

/// Adds to dq and dkv. Probabilities are recomputed from lse, not stored. `delta` is head_dots of
/// the whole output; with lse of all keys, parts of the keys may be treated apart.
///                               q, dy, dq (N * K, heads, D)  lse, delta (N * K, heads)
template <class T>
void attention_backward(CpuBackend<T>& backend, In<T, 3> q,
                        KeyValue<const std::type_identity_t<T>> kv, AttentionRule rule,
                        In<T, 2> lse, In<T, 2> delta, In<T, 3> dy, Out<T, 3> dq,
                        KeyValue<std::type_identity_t<T>> dkv) {
  using namespace detail;
  const index_t heads = q.shape[1], dim = q.shape[2];
  check_attention(q, kv, rule);
  AttentionPlan plan(backend, rule, heads);
  const GemmKernel<T>& kernel = backend.gemm_kernel();
  const index_t rows = plan.rows(), padded = kernel.padded(dim),
                each = rows * (3 * dim + 2 * padded + 2 * key_chunk + 2) +
                       key_chunk * (2 * dim + padded);
  auto scratch = backend.template allocate<T>(each * backend.threads());
  const index_t work = 2 * q.size() * (kv.k_context.shape[0] + key_chunk);
  const GradientParts<T> parts(backend, plan, kv, dkv);
  backend.parallel_for(parts.count() * plan.kv_heads(), work, [&](index_t task, int thread) {
    const index_t g = task % plan.kv_heads(), part = parts.count() - 1 - task / plan.kv_heads();
    const KeyValue<T> into = parts.clear(part, g, dim);
    T* const tile_q = scratch.data() + each * thread;
    T* const tile_dy = tile_q + rows * dim;
    T* const tile_dq = tile_dy + rows * dim;
    T* const packed_q = tile_dq + rows * dim;
    T* const packed_dy = packed_q + rows * padded;
    T* const score = packed_dy + rows * padded;
    T* const dp = score + rows * key_chunk;
    T* const tile_lse = dp + rows * key_chunk;
    T* const tile_delta = tile_lse + rows;
    T* const keys = tile_delta + rows;
    T* const values = keys + key_chunk * dim;
    T* const keys_again = values + key_chunk * dim;
    const Range tiles = parts.tiles(part);
    for (index_t t = tiles.begin; t < tiles.end; ++t) {
      const QueryTile tile = plan.tile(t, g, thread);
      for (index_t i = 0; i < tile.rows(); ++i) {
        const index_t at = tile.source(i, heads);
        for (index_t d = 0; d < dim; ++d)
          tile_q[i * dim + d] = q.data[at * dim + d] * T(rule.scale);
        std::copy_n(dy.data + at * dim, dim, tile_dy + i * dim);
        tile_lse[i] = lse.data[at];
        tile_delta[i] = delta.data[at];
      }
      std::fill_n(tile_dq, tile.rows() * dim, T(0));
      pack_panels<T>(kernel, {tile_q, dim, 1}, {0, tile.rows()}, tile.rows(), {0, dim}, packed_q);
      pack_panels<T>(kernel, {tile_dy, dim, 1}, {0, tile.rows()}, tile.rows(), {0, dim}, packed_dy);
      for_each_chunk(tile, [&](const KeyChunk& chunk) {
        const auto k = chunk.own ? kv.k_block : kv.k_context;
        const auto v = chunk.own ? kv.v_block : kv.v_context;
        const auto dk = chunk.own ? into.k_block : into.k_context;
        const auto dv = chunk.own ? into.v_block : into.v_context;
        const index_t first = chunk.rows.begin, count = chunk.rows.size(), slots = chunk.slots.end;
        const auto from = [&](const T* tile_rows, index_t step) {
          return [=](Range r) { return Strided<T>{tile_rows + (first + r.begin) * step, step, 1}; };
        };
        const auto columns_of = [&](const T* tile_rows) {
          return [=](Range r) {
            return Strided<T>{tile_rows + first * key_chunk + chunk.slots.begin + r.begin, 1,
                              key_chunk};
          };
        };
        pack_keys(kernel, k.data + g * dim, k.stride(), dim, chunk, keys);
        pack_keys(kernel, v.data + g * dim, v.stride(), dim, chunk, values);
        multiply(kernel, from(tile_q, dim), count, Panels<T>{keys, dim, slots}, {0, dim},
                 score + first * key_chunk, key_chunk, false);
        multiply(kernel, from(tile_dy, dim), count, Panels<T>{values, dim, slots}, {0, dim},
                 dp + first * key_chunk, key_chunk, false);
        const auto step = chunk.width() == 64   ? softmax_backward<64, T>
                          : chunk.width() == 48 ? softmax_backward<48, T>
                          : chunk.width() == 32 ? softmax_backward<32, T>
                                                : softmax_backward<16, T>;
        step(backend.path(), chunk, tile.heads.size(), score, dp, tile_lse, tile_delta);
        pack_values(kernel, k.data + g * dim, k.stride(), dim, chunk, keys_again);
        multiply(kernel, from(dp, key_chunk), count, Panels<T>{keys_again, slots, dim}, {0, slots},
                 tile_dq + first * dim, dim, true);
        const index_t to = (chunk.first + chunk.slots.begin) * dk.stride() + g * dim;
        multiply(kernel, columns_of(score), chunk.slots.size(),
                 Panels<T>{packed_dy, tile.rows(), dim}, chunk.rows, dv.data + to, dv.stride(),
                 true);
        multiply(kernel, columns_of(dp), chunk.slots.size(), Panels<T>{packed_q, tile.rows(), dim},
                 chunk.rows, dk.data + to, dk.stride(), true);
      });
      for (index_t i = 0; i < tile.rows(); ++i) {
        T* const to = dq.data + tile.source(i, heads) * dim;
        for (index_t d = 0; d < dim; ++d) to[d] += tile_dq[i * dim + d] * T(rule.scale);
      }
    }
  });
  parts.add_up(backend);
}

}  // namespace dflash
