#pragma once

#include <algorithm>
#include <cstdint>

#include "dflash/core/cross_entropy_part.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cuda/float8_head.cuh"
#include "dflash/cuda/linear_cross_entropy.cuh"
#include "dflash/cuda/linear_cross_entropy_part.cuh"

namespace dflash {

namespace cuda::detail {

inline constexpr index_t float8_tile_rows = 4096;

/// How a tile's product enters a row's sum: sum = keep * sum + take * product.
struct TileShare {
  float keep, take;
};

/// One block per row: p = 448 e^(logit - the tile's top), in float8, but zero for the label's word,
/// which float8_sum_kernel adds in full precision.
///              product, p (rows, padded)  x_scale, label, run, share (rows)  word_scale (words)
template <class Id>
__global__ void __launch_bounds__(HeldLogits<4>::most_threads)
    float8_step_kernel(const float* product, index_t words, index_t padded, index_t first_word,
                       const float* x_scale, const float* word_scale, const Id* label,
                       RunningRow* run, float8_e4m3* p, TileShare* share) {
  const index_t n = blockIdx.x;
  const float* const row = product + n * padded;
  const float scale = x_scale[n];
  const HeldLogits<4> held(words, [=](int j, float(&to)[4]) {
    float of_word[4];
    load<4>(row + j, to);
    load<4>(word_scale + j, of_word);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = j + i < words ? to[i] * (scale * of_word[i]) : -INFINITY;
  });
  const RunningRow before = run[n];
  RunningRow now = before;
  const index_t at = label[n] - first_word;
  if (at >= 0 && at < words) now.label_logit = row[at] * (scale * word_scale[at]);

  const float tile_top = held.top(), top = now.top = fmaxf(before.top, tile_top);
  const bool higher = top > before.top;
  const int found = higher ? held.find(top) : INT_MAX;
  auto* const to = reinterpret_cast<std::uint32_t*>(p + n * padded);
  const float sum = held.exponentials(tile_top, [=](int j, const float(&e)[4]) {
    float q[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) q[i] = j + i == at ? 0.0f : e[i] * float8_e4m3::largest;
    to[j / 4] = pack_float8(q[0], q[1], q[2], q[3]);
  });
  for (index_t j = (words + 3) / 4 + threadIdx.x; j < padded / 4; j += blockDim.x) to[j] = 0;
  const auto all = held.total(sum, found);
  const float keep = expf(before.top - top), take = expf(tile_top - top);
  now.sum = before.sum * double(keep) + double(all.sum * take);
  if (higher) now.best = std::int32_t(first_word) + all.first;
  if (threadIdx.x != 0) return;
  run[n] = now;
  share[n] = {keep, take / float8_e4m3::largest};
}

/// One block per row: what a tile adds to sum, the e^(logit - top) w over the words so far.
///          product (rows, width)  column_scale (width)  w (., dim)  sum (rows, dim)
template <class T>
__global__ void __launch_bounds__(row_threads)
    float8_sum_kernel(const float* product, index_t width, const TileShare* share,
                      const float* column_scale, Range words, const std::int32_t* label,
                      const RunningRow* run, const T* w, float* sum, index_t dim) {
  const index_t n = blockIdx.x, word = label[n];
  const TileShare by = share[n];
  const bool label_is_here = word >= words.begin && word < words.end;
  const float of_label = label_is_here ? expf(run[n].label_logit - run[n].top) : 0;
  for (index_t d = threadIdx.x; d < dim; d += blockDim.x) {
    float* const to = sum + n * dim + d;
    float s = product[n * width + d] * (by.take * column_scale[d]);
    if (words.begin > 0) s += *to * by.keep;
    if (label_is_here) s += of_label * to_float(w[word * dim + d]);
    *to = s;
  }
}

/// run_over_logits with both products in float8.
template <class T, class Finish>
void run_over_logits(CudaBackend<T>& backend, In<T, 2> x, const Float8Head<T>& head,
                     View<const std::int32_t, 1> label, int* fault, index_t tile_rows,
                     Finish finish) {
  const index_t rows = x.shape[0], dim = x.shape[1], width = head.width(),
                vocabulary = head.rows().shape[0], share = std::min(rows, tile_rows);
  expects(head.largest_tile() <= HeldLogits<4>::most_words,
          "linear_cross_entropy: the head's tiles have too many words");
  auto run = backend.template allocate<RunningRow>(share);
  auto row = backend.template allocate<float8_e4m3>(share * width);
  auto scale = backend.template allocate<float>(share);
  auto logits = backend.template allocate<float>(share * head.largest_tile());
  auto p = backend.template allocate<float8_e4m3>(share * head.largest_tile());
  auto shares = backend.template allocate<TileShare>(share);
  auto product = backend.template allocate<float>(share * width);
  auto sums = backend.template allocate<float>(share * dim);
  const auto multiply = [&](index_t n, index_t columns, index_t depth, const float8_e4m3* a,
                            const float8_e4m3* b, float* y) {
    backend.gemm().multiply({.rows = n,
                             .columns = columns,
                             .depth = depth,
                             .a_transposed = false,
                             .b_transposed = true,
                             .add = false},
                            a, b, y);
  };
  for (index_t first_row = 0; first_row < rows; first_row += share) {
    const Range r{first_row, std::min(rows, first_row + share)};
    const index_t n = r.size();
    const auto blocks = unsigned(n);
    const std::int32_t* const labels = label.data + r.begin;
    launch(backend.stream(), begin_rows_kernel<std::int32_t>, blocks_for(n, 256), 256u, 0, labels,
           n, vocabulary, fault, run.data());
    quantize_rows<T>(backend, x.rows(r), {row.data(), {n, width}}, {scale.data(), {n}});
    for (index_t t = 0; t < head.tiles(); ++t) {
      const index_t words = head.words(t), padded = head.padded_words(t), first = head.first(t);
      multiply(n, padded, width, row.data(), head.by_word(t), logits.data());
      launch(backend.stream(), float8_step_kernel<std::int32_t>, blocks,
             HeldLogits<4>::threads(words), HeldLogits<4>::scratch_bytes, logits.data(), words,
             padded, first, scale.data(), head.word_scale(t), labels, run.data(), p.data(),
             shares.data());
      multiply(n, width, padded, p.data(), head.by_column(t), product.data());
      launch(backend.stream(), float8_sum_kernel<T>, blocks, row_threads, 0, product.data(), width,
             shares.data(), head.column_scale(t), Range{first, first + words}, labels, run.data(),
             head.rows().data, sums.data(), dim);
    }
    finish(r, run.data(), vocabulary > 0 ? sums.data() : nullptr);
  }
}

}  // namespace cuda::detail

/// linear_cross_entropy with both products in float8: x has a scale per row, the head one per word;
/// for dx e^logit has one per row and tile of words, the head one per column and tile. The label's
/// word enters dx in full precision.                 x, dx (R, H)  label, nll, correct (R)
template <class T>
void linear_cross_entropy(CudaBackend<T>& backend, In<T, 2> x, const Float8Head<T>& head,
                          View<const std::int32_t, 1> label, Out<float, 1> nll,
                          View<std::uint8_t, 1> correct, Out<T, 2> dx) {
  using namespace cuda::detail;
  run_over_logits(backend, x, head, label, backend.fault(), float8_tile_rows,
                  whole_cross_entropy(backend, x, head.rows(), label, nll, correct, dx));
}

/// linear_cross_entropy_part likewise; its linear_cross_entropy_merge is that of head.rows().
///                                                         x, dx (R, H)  label, part (R)
template <class T>
void linear_cross_entropy_part(CudaBackend<T>& backend, In<T, 2> x, const Float8Head<T>& head,
                               View<const std::int32_t, 1> label,
                               View<CrossEntropyPart<float>, 1> part, Out<T, 2> dx) {
  using namespace cuda::detail;
  run_over_logits(backend, x, head, label, nullptr, float8_tile_rows,
                  part_of_cross_entropy(backend, x, head.rows(), label, part, dx));
}

}  // namespace dflash
