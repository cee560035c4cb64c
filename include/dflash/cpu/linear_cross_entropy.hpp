#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/gemm.hpp"
#include "dflash/cpu/linear.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

namespace detail {

/// What a row has seen of its logits so far.                               all (R)
template <class T>
struct RunningCrossEntropy {
  const std::int32_t* label;
  T *top, *label_logit;
  double* sum;         // of e^(logit - top)
  std::int32_t* best;  // first index of the largest logit
};

/// Turns the logits of rows [rows) for the words from `first_word` on into e^(logit - top), and
/// scales what y has summed to the new top.       logit (rows, step), `width` used, whole
/// sixty-fours
template <class T>
void cross_entropy_step(CpuPath path, RunningCrossEntropy<T> run, Range rows, index_t first_word,
                        index_t words, index_t width, T* logit, index_t step, T* y, index_t dim) {
  on_path(
      path, [=]() __attribute__((always_inline)) {
        for (index_t n = rows.begin; n < rows.end; ++n) {
          T* const row = logit + (n - rows.begin) * step;
          std::fill(row + words, row + width, -std::numeric_limits<T>::infinity());
          const index_t at = run.label[n] - first_word;
          if (at >= 0 && at < words) run.label_logit[n] = row[at];

          const T top = largest(row, width);
          if (top > run.top[n]) {
            run.best[n] = std::int32_t(first_word + (std::find(row, row + words, top) - row));
            const T shrink = exponential(run.top[n] - top);
            run.sum[n] *= double(shrink);
            if (first_word > 0)
              for (index_t d = 0; d < dim; ++d) y[n * dim + d] *= shrink;
            run.top[n] = top;
          }
          const T base = run.top[n];
          T lane[16] = {};
          for (index_t j = 0; j < width; j += 64) {
            for (int i = 0; i < 64; ++i) row[j + i] = exponential(row[j + i] - base);
            for (int l = 0; l < 16; ++l) {
              T sum = 0;
              for (int i = 0; i < 64; i += 16) sum += row[j + i + l];
              lane[l] += sum;
            }
          }
          run.sum[n] += double(fold(lane, [](T a, T b) { return a + b; }));
        }
      });
}

/// The same, and the memory that it lies in.
template <class T>
struct CrossEntropyRows {
  CpuBuffer<T> reals;
  CpuBuffer<double> sums;
  CpuBuffer<std::int32_t> bests;
  RunningCrossEntropy<T> run;

  CrossEntropyRows(CpuBackend<T>& backend, View<const std::int32_t, 1> label)
      : reals(backend.template allocate<T>(2 * label.size())),
        sums(backend.template allocate<double>(label.size())),
        bests(backend.template allocate<std::int32_t>(label.size())),
        run{label.data, reals.data(), reals.data() + label.size(), sums.data(), bests.data()} {
    std::fill_n(run.top, label.size(), -std::numeric_limits<T>::infinity());
    std::fill_n(run.label_logit, label.size(), std::numeric_limits<T>::quiet_NaN());
    std::fill_n(run.sum, label.size(), 0.0);
    std::fill_n(run.best, label.size(), -1);
  }
};

/// Runs over all logits x w^T, which never lie in memory whole: takes the vocabulary part by part,
/// each part's logits are exponentiated against the largest so far and multiplied with w again at
/// once. dx = sum of e^(logit - top) w (written).              x, dx (R, H)  w (V, H)
template <class T, class A, class B>
void run_over_logits(CpuBackend<T>& backend, const GemmKernel<T, A, B>& kernel, In<T, 2> x,
                     In<T, 2> w, const RunningCrossEntropy<T>& run, Out<T, 2> dx) {
  const index_t rows = x.shape[0], dim = x.shape[1], vocabulary = w.shape[0];
  if (vocabulary == 0) std::fill_n(dx.data, dx.size(), T(0));
  if (rows == 0 || vocabulary == 0) return;
  const index_t most = std::clamp<index_t>((1 << 20) / (dim + 1) / 64 * 64, 128, 512),
                part = std::min(most, (vocabulary + 63) / 64 * 64), step = part + 16,
                rounds = (rows + 96 * backend.threads() - 1) / (96 * backend.threads()),
                share = (rows - 1) / (rounds * backend.threads()) + 1,
                height = (share + kernel.rows - 1) / kernel.rows * kernel.rows,
                tiles = (rows + height - 1) / height, by_word_k = kernel.stored_depth(dim);
  const Strided<T> all_x{x.data, dim, 1};
  const RowCopies<T, A, B> x_copies(kernel, all_x, rows, dim);
  auto x_copy = backend.template allocate<A>(x_copies.size());
  const RowBlock<A> x_rows = x_copies.make(all_x, rows, x_copy.data());
  auto logits = backend.template allocate<T>(backend.threads() * height * step);
  const index_t largest_copy =
      RowCopies<T, A, B>(kernel, {logits.data(), step, 1}, height, part).size();
  auto factors = backend.template allocate<A>(backend.threads() * largest_copy);
  auto by_word = backend.template allocate<B>(kernel.padded(part) * by_word_k),
       by_dim = backend.template allocate<B>(kernel.padded(dim) * kernel.stored_depth(part));
  for (index_t first = 0; first < vocabulary; first += part) {
    const index_t words = std::min(part, vocabulary - first), width = (words + 63) / 64 * 64,
                  panel = kernel.panel_columns(), word_panels = kernel.panels(words),
                  by_dim_k = kernel.stored_depth(words);
    const T* const some = w.data + first * dim;
    backend.parallel_for(word_panels + kernel.panels(dim), 2 * words * dim, [&](index_t i, int) {
      if (i < word_panels)
        pack_panels(kernel, Strided<T>{some, 1, dim}, dim,
                    {i * panel, std::min(words, (i + 1) * panel)},
                    by_word.data() + i * panel * by_word_k);
      else
        pack_panels(kernel, Strided<T>{some, dim, 1}, words,
                    {(i - word_panels) * panel, std::min(dim, (i - word_panels + 1) * panel)},
                    by_dim.data() + (i - word_panels) * panel * by_dim_k);
    });
    backend.parallel_for(tiles, 2 * rows * words * dim, [&](index_t t, int thread) {
      const Range r{t * height, std::min(rows, (t + 1) * height)};
      T* const logit = logits.data() + thread * height * step;
      const auto x_of = [&](Range in_tile) {
        return x_rows(Range{r.begin + in_tile.begin, r.begin + in_tile.end});
      };
      multiply(kernel, x_of, r.size(), Panels<B>{by_word.data(), by_word_k, words},
               {0, kernel.depth(dim)}, logit, step, false);
      cross_entropy_step(backend.path(), run, r, first, words, width, logit, step, dx.data, dim);
      const Strided<T> powers{logit, step, 1};
      const RowCopies<T, A, B> copies(kernel, powers, r.size(), words);
      multiply(kernel, copies.make(powers, r.size(), factors.data() + thread * largest_copy),
               r.size(), Panels<B>{by_dim.data(), by_dim_k, dim}, {0, kernel.depth(words)},
               dx.data + r.begin * dim, dim, first > 0);
    });
  }
}

template <class T>
void run_over_logits(CpuBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                     const RunningCrossEntropy<T>& run, Out<T, 2> dx) {
  with_kernel(backend,
              [&](const auto& kernel) { run_over_logits(backend, kernel, x, w, run, dx); });
}

}  // namespace detail

/// Of each row nll = -log softmax(x w^T)[label], whether the label is the first largest logit, and
/// dx = d nll / dx (written). Throws if a label is not a row of w. The bits of a row do not depend
/// on the other rows.
///                                     x, dx (R, H)  w (V, H)  label, nll, correct (R)
template <class T>
void linear_cross_entropy(CpuBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                          View<const std::int32_t, 1> label, Out<T, 1> nll,
                          View<std::uint8_t, 1> correct, Out<T, 2> dx) {
  using namespace detail;
  const index_t rows = x.shape[0], dim = x.shape[1], vocabulary = w.shape[0];
  expects(w.shape[1] == dim && label.shape[0] == rows && nll.shape[0] == rows &&
              correct.shape[0] == rows && dx.shape[0] == rows && dx.shape[1] == dim,
          "linear_cross_entropy: shapes differ");
  for (index_t n = 0; n < rows; ++n)
    expects(label(n) >= 0 && label(n) < vocabulary,
            "linear_cross_entropy: a label is not a row of w");
  CrossEntropyRows<T> all(backend, label);
  const RunningCrossEntropy<T>& run = all.run;
  run_over_logits(backend, x, w, run, dx);
  backend.parallel_for(rows, rows * dim, [&](index_t n, int) {
    const T share = T(1 / run.sum[n]);
    const T* const row = w.data + label(n) * dim;
    T* const to = dx.data + n * dim;
    for (index_t d = 0; d < dim; ++d) to[d] = to[d] * share - row[d];
    nll(n) = T(std::log(run.sum[n]) + (double(run.top[n]) - double(run.label_logit[n])));
    correct(n) = run.best[n] == label(n);
  });
}

}  // namespace dflash
