#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
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

/// Brings what is needed soon from memory to the second cache level, a piece at each of `calls`.
class Fetch {
 public:
  template <class T>
  Fetch(const T* begin, const T* end, index_t calls)
      : at_(reinterpret_cast<const char*>(begin)),
        end_(reinterpret_cast<const char*>(end)),
        each_(((end_ - at_) / calls / line + 1) * line) {}

  void operator()() {
    const char* const stop = at_ + std::min(each_, end_ - at_);
    for (; at_ < stop; at_ += line) __builtin_prefetch(at_, 0, 2);
  }

 private:
  static constexpr std::ptrdiff_t line = 64;
  const char *at_, *end_;
  std::ptrdiff_t each_;
};

/// Runs over all logits x w^T, which never lie in memory whole: takes the vocabulary part by part,
/// each part's logits are exponentiated against the largest so far and multiplied with w again at
/// once. dx = sum of e^(logit - top) w (written).              x, dx (R, H)  w (V, H)
inline constexpr index_t pack_words = 64;

template <class T, class A, class B>
void run_over_logits(CpuBackend<T>& backend, const GemmKernel<T, A, B>& kernel, In<T, 2> x,
                     In<T, 2> w, const RunningCrossEntropy<T>& run, Out<T, 2> dx) {
  const index_t rows = x.shape[0], dim = x.shape[1], vocabulary = w.shape[0];
  if (vocabulary == 0) std::fill_n(dx.data, dx.size(), T(0));
  if (rows == 0 || vocabulary == 0) return;
  const index_t most = std::clamp<index_t>((1 << 20) / (dim + 1) / 64 * 64, 128, 512),
                part = std::min(most, (vocabulary + 63) / 64 * 64), step = part + 16,
                rounds = (rows + 96 * backend.threads() - 1) / (96 * backend.threads()),
                blocks = std::min(rounds * backend.threads(), rows),
                height = (rows + blocks - 1) / blocks, by_word_k = kernel.stored_depth(dim);
  const Strided<T> all_x{x.data, dim, 1};
  const RowCopies<T, A, B> x_copies(kernel, all_x, rows, dim);
  auto x_copy = backend.template allocate<A>(x_copies.size());
  const RowBlock<A> x_rows = x_copies.make(all_x, rows, x_copy.data());
  auto logits = backend.template allocate<T>(backend.threads() * height * step);
  const index_t largest_copy =
      RowCopies<T, A, B>(kernel, {logits.data(), step, 1}, height, part).size();
  auto factors = backend.template allocate<A>(backend.threads() * largest_copy);
  // Two of each, in turns.
  const index_t word_size = kernel.padded(part) * by_word_k,
                dim_size = kernel.padded(dim) * kernel.stored_depth(part);
  auto packed = backend.template allocate<B>(2 * (word_size + dim_size));
  const auto words_from = [&](index_t first) {
    return std::clamp<index_t>(vocabulary - first, 0, part);
  };
  const auto by_word_of = [&](index_t first) {
    return packed.data() + first / part % 2 * (word_size + dim_size);
  };
  // Both forms at once: the second time a word is read it is still in the cache.
  const auto pack = [&](index_t first, index_t i) {
    const index_t words = words_from(first);
    const Range few{i * pack_words, std::min(words, (i + 1) * pack_words)};
    const T* const some = w.data + first * dim;
    B* const by_word = by_word_of(first);
    pack_panels(kernel, Strided<T>{some, 1, dim}, {0, dim}, dim, few,
                by_word + few.begin * by_word_k);
    pack_panels(kernel, Strided<T>{some, dim, 1}, few, words, {0, dim}, by_word + word_size);
  };
  const auto multiply_block = [&](index_t first, index_t t, int thread) {
    const index_t words = words_from(first), width = (words + 63) / 64 * 64;
    const B* const by_word = by_word_of(first);
    const Range r = tile_rows(rows, blocks, t);
    T* const logit = logits.data() + thread * height * step;
    const auto x_of = [&](Range in_tile) {
      return x_rows(Range{r.begin + in_tile.begin, r.begin + in_tile.end});
    };
    const index_t next = first + words, calls = (r.size() + kernel.rows - 1) / kernel.rows *
                                                (kernel.panels(words) + kernel.panels(dim));
    const Range share = tile_rows(words_from(next) * dim, blocks, t);
    const T* const from = w.data + next * dim;
    Fetch fetch(from + share.begin, from + share.end, calls);
    multiply(kernel, x_of, r.size(), Panels<B>{by_word, by_word_k, words}, {0, kernel.depth(dim)},
             logit, step, false, std::ref(fetch));
    cross_entropy_step(backend.path(), run, r, first, words, width, logit, step, dx.data, dim);
    const Strided<T> powers{logit, step, 1};
    const RowCopies<T, A, B> copies(kernel, powers, r.size(), words);
    multiply(kernel, copies.make(powers, r.size(), factors.data() + thread * largest_copy),
             r.size(), Panels<B>{by_word + word_size, kernel.stored_depth(words), dim},
             {0, kernel.depth(words)}, dx.data + r.begin * dim, dim, first > 0, std::ref(fetch));
  };
  // While a part is multiplied the next is packed, by whoever has finished.
  for (index_t first = -part; first < vocabulary; first += part) {
    const index_t ready = first < 0 ? 0 : blocks, next = words_from(first + part),
                  pieces = (next + pack_words - 1) / pack_words;
    backend.parallel_for(ready + pieces, (ready == 0 ? next : rows * part) * dim,
                         [&](index_t i, int thread) {
                           if (i < ready)
                             multiply_block(first, i, thread);
                           else
                             pack(first + part, i - ready);
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
