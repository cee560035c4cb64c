#pragma once

#include <algorithm>
#include <cstdint>

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/held_logits.cuh"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/row_shape.cuh"
#include "dflash/cuda/vector.cuh"

namespace dflash {

namespace cuda::detail {

/// How much of the logits exists at once: a tile of rows and words, large enough for products at
/// full speed.
struct CrossEntropyTile {
  index_t rows = 4096, words = 8192;
};

/// What a row has seen of its logits so far.
struct RunningRow {
  double sum;         // of e^(logit - top)
  float top;          // -infinity at first
  float label_logit;  // NaN until the label's tile
  std::int32_t best;  // first word with the largest logit
};

inline constexpr unsigned row_threads = 256;

template <class Id>
__global__ void __launch_bounds__(256)
    begin_rows_kernel(const Id* label, index_t rows, index_t vocabulary, int* fault,
                      RunningRow* run) {
  const index_t n = index_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= rows) return;
  run[n] = {0, -INFINITY, NAN, -1};
  if (fault != nullptr && (label[n] < 0 || label[n] >= vocabulary))
    atomicMax(fault, int(CudaFault::label));
}

/// One block per row: logits become p = e^(logit - top), and what dx has summed is scaled to the
/// new top. p may lie where the logits do. Words and dim are whole vectors of `width`.
///                                                            logit, p (rows, words)  dx (rows, H)
template <int width, class T>
__global__ void __launch_bounds__(HeldLogits<4>::most_threads, 2)
    cross_entropy_step_kernel(const float* logit, index_t words, index_t first_word,
                              const std::int32_t* label, RunningRow* run, T* p, float* dx,
                              index_t dim) {
  const index_t n = blockIdx.x;
  const float* const row = logit + n * words;
  T* const out = p + n * words;
  const index_t at = label[n] - first_word;
  if (threadIdx.x == 0 && at >= 0 && at < words) run[n].label_logit = row[at];
  const HeldLogits<width> held(words, [=](int j, float(&to)[width]) { load<width>(row + j, to); });
  const float before = run[n].top, top = fmaxf(before, held.top()), shrink = expf(before - top);
  const bool higher = top > before;
  const int found = higher ? held.find(top) : INT_MAX;
  const float sum =
      held.exponentials(top, [=](int j, const float(&e)[width]) { store<width>(e, out + j); });
  const auto all = held.total(sum, found);
  if (threadIdx.x == 0) {
    RunningRow& now = run[n];
    now.sum = now.sum * double(shrink) + double(all.sum);
    now.top = top;
    if (higher) now.best = std::int32_t(first_word) + all.first;
  }
  if (!higher || first_word == 0) return;
  for (index_t d = index_t(threadIdx.x) * width; d < dim; d += index_t(blockDim.x) * width) {
    float v[width];
    load<width>(dx + n * dim + d, v);
#pragma unroll
    for (int i = 0; i < width; ++i) v[i] *= shrink;
    store<width>(v, dx + n * dim + d);
  }
}

/// One block per row: dx = share of the sum less the label's row of w, and what is said of the row.
template <int width, class T>
__global__ void __launch_bounds__(row_threads)
    cross_entropy_finish_kernel(const RunningRow* run, const std::int32_t* label, const float* sum,
                                const T* w, index_t vocabulary, index_t dim, float* nll,
                                std::uint8_t* correct, T* dx) {
  const index_t n = blockIdx.x;
  const RunningRow row = run[n];
  const std::int32_t word = label[n];
  const bool known = word >= 0 && word < vocabulary;
  const float share = float(1 / row.sum);
  for (index_t d = index_t(threadIdx.x) * width; d < dim; d += index_t(blockDim.x) * width) {
    float s[width], of_label[width] = {};
    load<width>(sum + n * dim + d, s);
    if (known) load<width>(w + word * dim + d, of_label);
#pragma unroll
    for (int i = 0; i < width; ++i) s[i] = s[i] * share - of_label[i];
    store<width>(s, dx + n * dim + d);
  }
  if (threadIdx.x == 0) {
    nll[n] = float(log(row.sum) + (double(row.top) - double(row.label_logit)));
    correct[n] = row.best == word;
  }
}

/// Runs over all logits x w^T, tile by tile, and calls finish(rows, run, sum) for each share of the
/// rows: sum of e^(logit - top) w, null if there are no words.  x (R, H)  w (V, H)  label (R)
template <class T, class Finish>
void run_over_logits(CudaBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                     View<const std::int32_t, 1> label, int* fault, CrossEntropyTile tile,
                     Finish finish) {
  const index_t rows = x.shape[0], dim = x.shape[1], vocabulary = w.shape[0];
  const index_t share = std::min(rows, tile.rows),
                most = std::min({vocabulary, tile.words, HeldLogits<4>::most_words});
  auto run = backend.template allocate<RunningRow>(share);
  auto logits = backend.template allocate<float>(share * most);
  auto sums = backend.template allocate<float>(share * dim);
  constexpr bool narrow = !std::is_same_v<T, float>;
  auto narrow_p = backend.template allocate<T>(narrow ? share * most : 0);
  T* p = narrow_p.data();
  if constexpr (!narrow) p = logits.data();
  for (index_t first_row = 0; first_row < rows; first_row += share) {
    const Range r{first_row, std::min(rows, first_row + share)};
    const std::int32_t* const labels = label.data + r.begin;
    launch(backend.stream(), begin_rows_kernel<std::int32_t>, blocks_for(r.size(), 256), 256u, 0,
           labels, r.size(), vocabulary, fault, run.data());
    for (index_t first = 0; first < vocabulary; first += most) {
      const index_t words = std::min(most, vocabulary - first);
      const T* const some = w.data + first * dim;
      backend.gemm().multiply({.rows = r.size(),
                               .columns = words,
                               .depth = dim,
                               .a_transposed = false,
                               .b_transposed = true,
                               .add = false},
                              x.rows(r).data, some, logits.data());
      const bool vectors = words % 4 == 0 && dim % 4 == 0;
      launch(backend.stream(),
             vectors ? cross_entropy_step_kernel<4, T> : cross_entropy_step_kernel<1, T>,
             unsigned(r.size()), HeldLogits<4>::threads(words), HeldLogits<4>::scratch_bytes,
             logits.data(), words, first, labels, run.data(), p, sums.data(), dim);
      backend.gemm().multiply({.rows = r.size(),
                               .columns = dim,
                               .depth = words,
                               .a_transposed = false,
                               .b_transposed = false,
                               .add = first > 0},
                              static_cast<const T*>(p), some, sums.data());
    }
    finish(r, run.data(), vocabulary > 0 ? sums.data() : nullptr);
  }
}

/// What becomes of the rows that run_over_logits has finished: nll, correct and dx of the whole.
template <class T>
auto whole_cross_entropy(CudaBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                         View<const std::int32_t, 1> label, Out<float, 1> nll,
                         View<std::uint8_t, 1> correct, Out<T, 2> dx) {
  const index_t rows = x.shape[0], dim = x.shape[1], vocabulary = w.shape[0];
  expects(w.shape[1] == dim && label.shape[0] == rows && nll.shape[0] == rows &&
              correct.shape[0] == rows && dx.shape[0] == rows && dx.shape[1] == dim,
          "linear_cross_entropy: shapes differ");
  expects(rows == 0 || vocabulary > 0, "linear_cross_entropy: the head has no words");
  const bool vectors = are_vectors<T>(dim, {w.data, dx.data});
  return [=, &backend](Range r, const RunningRow* run, const float* sum) {
    launch(backend.stream(),
           vectors ? cross_entropy_finish_kernel<wide, T> : cross_entropy_finish_kernel<1, T>,
           unsigned(r.size()), row_threads, 0, run, label.data + r.begin, sum, w.data, vocabulary,
           dim, nll.data + r.begin, correct.data + r.begin, dx.rows(r).data);
  };
}

template <class T>
void linear_cross_entropy(CudaBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                          View<const std::int32_t, 1> label, Out<float, 1> nll,
                          View<std::uint8_t, 1> correct, Out<T, 2> dx, CrossEntropyTile tile) {
  const auto finish = whole_cross_entropy(backend, x, w, label, nll, correct, dx);
  run_over_logits(backend, x, w, label, backend.fault(), tile, finish);
}

}  // namespace cuda::detail

/// Of each row nll = -log softmax(x w^T)[label], whether the label is the first largest logit, and
/// dx = d nll / dx (written). A label that is not a row of w makes the next download or synchronize
/// throw.                                       x, dx (R, H)  w (V, H)  label, nll, correct (R)
template <class T>
void linear_cross_entropy(CudaBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                          View<const std::int32_t, 1> label, Out<float, 1> nll,
                          View<std::uint8_t, 1> correct, Out<T, 2> dx) {
  cuda::detail::linear_cross_entropy<T>(backend, x, w, label, nll, correct, dx, {});
}

}  // namespace dflash
