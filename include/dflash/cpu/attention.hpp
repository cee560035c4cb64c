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

/// The same for as many slots as the chunk has.
template <class T>
void softmax_step(CpuPath path, const KeyChunk& chunk, index_t heads, T* score,
                  RunningSoftmax<T> run, T* y, index_t dim) {
  const auto step = chunk.width() == 64   ? softmax_step<64, T>
                    : chunk.width() == 48 ? softmax_step<48, T>
                    : chunk.width() == 32 ? softmax_step<32, T>
                                          : softmax_step<16, T>;
  step(path, chunk, heads, score, run, y, dim);
}

/// What a thread keeps of a tile: its queries, scores of a chunk, and what it has summed so far.
template <class T>
struct TileSums {
  T* data;
  index_t rows, dim;

  static index_t size(index_t rows, index_t dim) { return rows * (2 * dim + key_chunk + 4); }
  RunningSoftmax<T> run() const { return {data, data + rows, data + 2 * rows, data + 3 * rows}; }
  T* q() const { return data + 4 * rows; }
  T* y() const { return q() + rows * dim; }
  T* score() const { return y() + rows * dim; }

  void begin(const QueryTile& tile, View<const T, 3> all_q, double scale) const {
    for (index_t i = 0; i < tile.rows(); ++i) {
      const T* from = all_q.data + tile.source(i, all_q.shape[1]) * dim;
      for (index_t d = 0; d < dim; ++d) q()[i * dim + d] = from[d] * T(scale);
    }
    std::fill_n(y(), tile.rows() * dim, T(0));
    std::fill_n(run().top, tile.rows(), -std::numeric_limits<T>::infinity());
    std::fill_n(run().sum, tile.rows(), T(0));
  }
  void end(const QueryTile& tile, View<T, 3> all_y, View<T, 2> lse) const {
    const RunningSoftmax<T> seen = run();
    for (index_t i = 0; i < tile.rows(); ++i) {
      const index_t at = tile.source(i, all_y.shape[1]);
      const T share = seen.sum[i] > 0 ? 1 / seen.sum[i] : T(0);
      for (index_t d = 0; d < dim; ++d) all_y.data[at * dim + d] = y()[i * dim + d] * share;
      lse.data[at] = seen.top[i] + std::log(seen.sum[i]);
    }
  }
};

/// Attention of tiles of a few rows. A task takes neighbouring heads chunk by chunk, so that keys
/// and values of a row, which lie together, are read together.
template <class T>
void attention_of_few(CpuBackend<T>& backend, View<const T, 3> q, const KeyValue<const T>& kv,
                      const AttentionRule& rule, AttentionPlan& plan, View<T, 3> y,
                      View<T, 2> lse) {
  const index_t dim = q.shape[2], rows = plan.rows(),
                parts = std::clamp<index_t>(plan.kv_heads(), 1, backend.threads()),
                most = (plan.kv_heads() + parts - 1) / parts, one = TileSums<T>::size(rows, dim),
                each = most * one + key_chunk * dim;
  auto scratch = backend.template allocate<T>(each * backend.threads());
  // The work is in turning and reading the keys.
  const index_t work = few_rows * q.size() * (kv.k_context.shape[0] + key_chunk);
  backend.parallel_for(plan.tiles() * parts, work, [&](index_t task, int thread) {
    const Range heads{plan.kv_heads() * (task % parts) / parts,
                      plan.kv_heads() * (task % parts + 1) / parts};
    const index_t t = plan.tiles() - 1 - task / parts;
    T* const turned = scratch.data() + each * thread;
    const auto sums_of = [&](index_t g) {
      return TileSums<T>{turned + key_chunk * dim + (g - heads.begin) * one, rows, dim};
    };
    for (index_t g = heads.begin; g < heads.end; ++g)
      sums_of(g).begin(plan.tile(t, g, thread), q, rule.scale);
    const QueryTile first = plan.tile(t, heads.begin, thread);
    for_each_chunk(first, [&](const KeyChunk& of_first) {
      const auto k = of_first.own ? kv.k_block : kv.k_context;
      const auto v = of_first.own ? kv.v_block : kv.v_context;
      for (index_t g = heads.begin; g < heads.end; ++g) {
        const index_t sharing = plan.tile(t, g, thread).heads.size(), before = first.heads.size();
        KeyChunk chunk = of_first;
        chunk.rows = {chunk.rows.begin / before * sharing, chunk.rows.end / before * sharing};
        const TileSums<T> sums = sums_of(g);
        scores_of_few(backend.path(), sums.q(), k.data + g * dim, k.stride(), dim, chunk,
                      sums.score(), turned);
        softmax_step(backend.path(), chunk, sharing, sums.score(), sums.run(), sums.y(), dim);
        add_values_of_few(backend.path(), sums.score(), v.data + g * dim, v.stride(), dim, chunk,
                          sums.y());
      }
    });
    for (index_t g = heads.begin; g < heads.end; ++g)
      sums_of(g).end(plan.tile(t, g, thread), y, lse);
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
                each = TileSums<T>::size(rows, dim) + key_chunk * (dim + padded);
  auto scratch = backend.template allocate<T>(each * backend.threads());
  const index_t work = q.size() * (kv.k_context.shape[0] + key_chunk);
  if (has_few_rows<T>(rows, dim)) return attention_of_few(backend, q, kv, rule, plan, y, lse);
  backend.parallel_for(plan.tiles() * plan.kv_heads(), work, [&](index_t task, int thread) {
    const index_t g = task % plan.kv_heads();
    // Tiles further back see more keys: they go first, so that all threads end together.
    const QueryTile tile = plan.tile(plan.tiles() - 1 - task / plan.kv_heads(), g, thread);
    const TileSums<T> sums{scratch.data() + each * thread, rows, dim};
    T *const tile_q = sums.q(), *const tile_y = sums.y(), *const score = sums.score();
    T* const packed_keys = score + rows * key_chunk;
    T* const packed_values = packed_keys + key_chunk * dim;
    sums.begin(tile, q, rule.scale);
    for_each_chunk(tile, [&](const KeyChunk& chunk) {
      const auto k = chunk.own ? kv.k_block : kv.k_context;
      const auto v = chunk.own ? kv.v_block : kv.v_context;
      const index_t first = chunk.rows.begin, slots = chunk.slots.end;
      pack_keys(kernel, k.data + g * dim, k.stride(), dim, chunk, packed_keys);
      multiply(
          kernel,
          [&](Range r) {
            return Strided<T>{tile_q + (first + r.begin) * dim, dim, 1};
          },
          chunk.rows.size(), Panels<T>{packed_keys, dim, slots}, {0, dim},
          score + first * key_chunk, key_chunk, false);
      softmax_step(backend.path(), chunk, tile.heads.size(), score, sums.run(), tile_y, dim);
      pack_values(kernel, v.data + g * dim, v.stride(), dim, chunk, packed_values);
      multiply(
          kernel,
          [&](Range r) {
            return Strided<T>{score + (first + r.begin) * key_chunk, key_chunk, 1};
          },
          chunk.rows.size(), Panels<T>{packed_values, slots, dim}, {0, slots}, tile_y + first * dim,
          dim, true);
    });
    sums.end(tile, y, lse);
  });
}

}  // namespace dflash
