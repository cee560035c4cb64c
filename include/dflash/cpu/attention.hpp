#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/attention_few_rows.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

namespace detail {

/// What a query row has seen so far.                                       all (rows)
template <class T>
struct RunningSoftmax {
  T *top, *sum;         // largest score, and sum of e^(score - top)
  T *new_top, *shrink;  // scratch
};

/// One step of the softmax of a stream of scores (arXiv:2205.14135): a chunk's scores become
/// e^(score - top) with the largest so far as top, and what the rows have summed is scaled to it.
///                                                     score (rows, key_chunk)  y (rows, dim)
template <int Width, class T>
void softmax_step(CpuPath path, const KeyChunk& chunk, index_t heads, T* score,
                  RunningSoftmax<T> run, T* y, index_t dim) {
  on_path(
      path, [ =, &chunk ]() __attribute__((always_inline)) {
        const auto [begin, end] = chunk.rows;
        T lane[16];
        for (index_t i = begin; i < end; ++i) {
          T* const row = score + i * key_chunk;
          hide<Width>(chunk, chunk.visible[i / heads], row);
          for (int l = 0; l < 16; ++l) {
            T largest = row[l];
            for (int j = 16; j < Width; j += 16)
              largest = largest < row[j + l] ? row[j + l] : largest;
            lane[l] = largest;
          }
          run.new_top[i] = std::max(run.top[i], fold(lane, [](T a, T b) { return a < b ? b : a; }));
        }
        for (index_t i = begin; i < end; ++i) {
          // A row that has seen no key has a top of -infinity; any finite number serves it.
          const T top = std::max(run.new_top[i], std::numeric_limits<T>::lowest());
          run.shrink[i] = exponential(run.top[i] - top);
          run.top[i] = top;
          run.sum[i] *= run.shrink[i];
        }
        for (index_t i = begin; i < end; ++i) {
          T* const row = score + i * key_chunk;
          const T top = run.top[i];
          for (int j = 0; j < Width; ++j) row[j] = exponential(row[j] - top);
          for (int l = 0; l < 16; ++l) {
            T sum = row[l];
            for (int j = 16; j < Width; j += 16) sum += row[j + l];
            lane[l] = sum;
          }
          run.sum[i] += fold(lane, [](T a, T b) { return a + b; });
          run.top[i] = run.new_top[i];
          if (const T shrink = run.shrink[i]; shrink != 1)
            for (index_t d = 0; d < dim; ++d) y[i * dim + d] *= shrink;
        }
      });
}

}  // namespace detail

/// y = softmax(scale q k^T, where the mask lets it) v, and lse = log sum exp of each row's scores,
/// kept for backward. A row that sees no key gets y = 0 and lse = -infinity. The bits of a row
/// depend on its q and on the keys and values that it sees, and on nothing else.
///                                                 q, y (N * K, heads, D)  lse (N * K, heads)
template <class T>
void attention(CpuBackend<T>& backend, In<T, 3> q, KeyValue<const std::type_identity_t<T>> kv,
               AttentionRule rule, Out<T, 3> y, Out<T, 2> lse) {
  using namespace detail;
  const index_t heads = q.shape[1], dim = q.shape[2];
  check_attention(q, kv, rule);
  AttentionPlan plan(backend, rule, heads);
  const GemmKernel<T>& kernel = backend.gemm_kernel();
  const index_t rows = plan.rows(), padded = kernel.padded(dim),
                each = rows * (2 * dim + key_chunk + 4) + key_chunk * (dim + padded);
  auto scratch = backend.template allocate<T>(each * backend.threads());
  // Of a few rows the work is in turning and reading the keys.
  const index_t work =
      q.size() * (kv.k_context.shape[0] + key_chunk) * (has_few_rows<T>(rows, dim) ? few_rows : 1);
  backend.parallel_for(plan.tiles() * plan.kv_heads(), work, [&](index_t task, int thread) {
    const index_t g = task % plan.kv_heads();
    // Tiles further back see more keys: they go first, so that all threads end together.
    const QueryTile tile = plan.tile(plan.tiles() - 1 - task / plan.kv_heads(), g, thread);
    T* const tile_q = scratch.data() + each * thread;
    T* const tile_y = tile_q + rows * dim;
    T* const score = tile_y + rows * dim;
    T* const top = score + rows * key_chunk;
    T* const sum = top + rows;
    const RunningSoftmax<T> run{top, sum, sum + rows, sum + 2 * rows};
    T* const packed_keys = sum + 3 * rows;
    T* const packed_values = packed_keys + key_chunk * dim;
    for (index_t i = 0; i < tile.rows(); ++i) {
      const T* from = q.data + tile.source(i, heads) * dim;
      for (index_t d = 0; d < dim; ++d) tile_q[i * dim + d] = from[d] * T(rule.scale);
    }
    const bool few = has_few_rows<T>(tile.rows(), dim);
    std::fill_n(tile_y, tile.rows() * dim, T(0));
    std::fill_n(top, tile.rows(), -std::numeric_limits<T>::infinity());
    std::fill_n(sum, tile.rows(), T(0));
    for_each_chunk(tile, [&](const KeyChunk& chunk) {
      const auto k = chunk.own ? kv.k_block : kv.k_context;
      const auto v = chunk.own ? kv.v_block : kv.v_context;
      const index_t first = chunk.rows.begin, slots = chunk.slots.end;
      if (few) {
        prefetch_rows(v.data + g * dim + (chunk.first + chunk.slots.begin) * v.stride(), v.stride(),
                      chunk.slots.size(), dim);
        scores_of_few(backend.path(), tile_q, k.data + g * dim, k.stride(), dim, chunk, score,
                      packed_keys);
      } else {
        pack_keys(kernel, k.data + g * dim, k.stride(), dim, chunk, packed_keys);
        multiply(
            kernel,
            [&](Range r) {
              return Strided<T>{tile_q + (first + r.begin) * dim, dim, 1};
            },
            chunk.rows.size(), Panels<T>{packed_keys, dim, slots}, {0, dim},
            score + first * key_chunk, key_chunk, false);
      }
      const auto step = chunk.width() == 64   ? softmax_step<64, T>
                        : chunk.width() == 48 ? softmax_step<48, T>
                        : chunk.width() == 32 ? softmax_step<32, T>
                                              : softmax_step<16, T>;
      step(backend.path(), chunk, tile.heads.size(), score, run, tile_y, dim);
      if (few)
        return add_values_of_few(backend.path(), score, v.data + g * dim, v.stride(), dim, chunk,
                                 tile_y);
      pack_values(kernel, v.data + g * dim, v.stride(), dim, chunk, packed_values);
      multiply(
          kernel,
          [&](Range r) {
            return Strided<T>{score + (first + r.begin) * key_chunk, key_chunk, 1};
          },
          chunk.rows.size(), Panels<T>{packed_values, slots, dim}, {0, slots}, tile_y + first * dim,
          dim, true);
    });
    for (index_t i = 0; i < tile.rows(); ++i) {
      const index_t at = tile.source(i, heads);
      const T share = sum[i] > 0 ? 1 / sum[i] : T(0);
      for (index_t d = 0; d < dim; ++d) y.data[at * dim + d] = tile_y[i * dim + d] * share;
      lse.data[at] = top[i] + std::log(sum[i]);
    }
  });
}

}  // namespace dflash
