#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/convert.hpp"
#include "dflash/cpu/fetch.hpp"
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
class LogitsPass {
 public:
  LogitsPass(CpuBackend<T>& backend, const GemmKernel<T, A, B>& kernel, In<T, 2> x,
             StoredRows<const T> w, const RunningCrossEntropy<T>& run, Out<T, 2> dx)
      : backend_(backend),
        kernel_(kernel),
        w_(w),
        run_(run),
        dx_(dx),
        part_(part_of(w)),
        blocks_(blocks_of(x.shape[0], backend.threads())),
        height_((x.shape[0] + blocks_ - 1) / blocks_),
        by_word_k_(kernel.stored_depth(w.shape[1])),
        word_size_(kernel.padded(part_) * by_word_k_),
        dim_size_(kernel.padded(w.shape[1]) * kernel.stored_depth(part_)),
        packed_(backend.template allocate<B>(2 * (word_size_ + dim_size_))),
        widened_(backend.template allocate<T>(w.narrow() ? part_ * w.shape[1] : 0)),
        logits_(backend.template allocate<T>(backend.threads() * height_ * step())),
        factor_size_(
            RowCopies<T, A, B>(kernel, {logits_.data(), step(), 1}, height_, part_).size(height_)),
        factors_(backend.template allocate<A>(backend.threads() * factor_size_)) {
    const Strided<T> all{x.data, x.shape[1], 1};
    const RowCopies<T, A, B> copies(kernel, all, x.shape[0], x.shape[1]);
    x_copy_ = backend.template allocate<A>(copies.size(x.shape[0]));
    x_ = copies.make(all, x.shape[0], x_copy_.data());
  }

  void operator()() {
    const index_t vocabulary = w_.shape[0], dim = w_.shape[1], rows = dx_.shape[0];
    // While a part is multiplied the next is packed, by whoever has finished.
    for (index_t first = -part_; first < vocabulary; first += part_) {
      const index_t ready = first < 0 ? 0 : blocks_, next = words_from(first + part_),
                    pieces = (next + pack_words - 1) / pack_words;
      backend_.parallel_for(ready + pieces, (ready == 0 ? next : rows * part_) * dim,
                            [&](index_t i, int thread) {
                              if (i < ready)
                                multiply_block(first, i, thread);
                              else
                                pack(first + part_, i - ready);
                            });
    }
  }

 private:
  static constexpr index_t pack_words = 64;  // by one thread at a time

  static index_t part_of(const StoredRows<const T>& w) {
    const index_t most = std::clamp<index_t>((1 << 20) / (w.shape[1] + 1) / 64 * 64, 128, 512);
    return std::min(most, (w.shape[0] + 63) / 64 * 64);
  }
  static index_t blocks_of(index_t rows, index_t threads) {
    return std::min((rows + 96 * threads - 1) / (96 * threads) * threads, rows);
  }
  index_t step() const { return part_ + 16; }
  index_t words_from(index_t first) const {
    return std::clamp<index_t>(w_.shape[0] - first, 0, part_);
  }
  /// Words as columns, and behind them as rows; of two parts in turns.
  B* packed(index_t first) { return packed_.data() + first / part_ % 2 * (word_size_ + dim_size_); }

  /// Both forms at once: the second time a word is read it is still in the cache.
  void pack(index_t first, index_t piece) {
    const index_t words = words_from(first), dim = w_.shape[1];
    const Range few{piece * pack_words, std::min(words, (piece + 1) * pack_words)};
    const T* const some = in_floats(first, few);
    B* const to = packed(first);
    pack_panels(kernel_, Strided<T>{some, 1, dim}, {0, dim}, dim, few, to + few.begin * by_word_k_);
    pack_panels(kernel_, Strided<T>{some, dim, 1}, few, words, {0, dim}, to + word_size_);
  }

  /// The words of a part from `first` on, of which `few` can be read.
  const T* in_floats(index_t first, Range few) {
    return w_.rows({first, first + words_from(first)}).visit([&](const auto& words) -> const T* {
      if constexpr (std::is_convertible_v<decltype(words.data), const T*>) return words.data;
      T* const to = widened_.data();
      const auto read = words.rows(few);
      convert_elements(read.data, read.size(), to + few.begin * words.shape[1]);
      return to;
    });
  }

  /// A block's share of the words that are packed after those from `first` on.
  Fetch fetch_next(index_t first, index_t block, index_t calls) const {
    const index_t next = first + part_;
    const Range share = tile_rows(words_from(next) * w_.shape[1], blocks_, block);
    return w_.visit([&](const auto& words) {
      const auto* const from = words.data + next * words.shape[1];
      return Fetch(from + share.begin, from + share.end, calls);
    });
  }

  void multiply_block(index_t first, index_t block, int thread) {
    const index_t words = words_from(first), width = (words + 63) / 64 * 64, dim = w_.shape[1];
    const Range r = tile_rows(dx_.shape[0], blocks_, block);
    T* const logit = logits_.data() + thread * height_ * step();
    const auto x_of = [&](Range some) {
      return x_(Range{r.begin + some.begin, r.begin + some.end});
    };
    Fetch fetch = fetch_next(
        first, block, kernel_.row_tiles(r.size()) * (kernel_.panels(words) + kernel_.panels(dim)));
    multiply(kernel_, x_of, r.size(), Panels<B>{packed(first), by_word_k_, words},
             {0, kernel_.depth(dim)}, logit, step(), false, std::ref(fetch));
    cross_entropy_step(backend_.path(), run_, r, first, words, width, logit, step(), dx_.data, dim);
    const Strided<T> powers{logit, step(), 1};
    const RowCopies<T, A, B> copies(kernel_, powers, r.size(), words);
    multiply(kernel_, copies.make(powers, r.size(), factors_.data() + thread * factor_size_),
             r.size(), Panels<B>{packed(first) + word_size_, kernel_.stored_depth(words), dim},
             {0, kernel_.depth(words)}, dx_.data + r.begin * dim, dim, first > 0, std::ref(fetch));
  }

  CpuBackend<T>& backend_;
  const GemmKernel<T, A, B>& kernel_;
  StoredRows<const T> w_;
  RunningCrossEntropy<T> run_;
  Out<T, 2> dx_;
  index_t part_, blocks_, height_;  // words of a part; of rows
  index_t by_word_k_, word_size_, dim_size_;
  CpuBuffer<B> packed_;
  CpuBuffer<T> widened_, logits_;  // a part's words, where they lie in bfloat16
  index_t factor_size_;
  CpuBuffer<A> factors_, x_copy_;
  RowBlock<A> x_;
};

template <class T>
void run_over_logits(CpuBackend<T>& backend, In<T, 2> x, const StoredRows<const T>& w,
                     const RunningCrossEntropy<T>& run, Out<T, 2> dx) {
  if (w.shape[0] == 0) std::fill_n(dx.data, dx.size(), T(0));
  if (x.shape[0] == 0 || w.shape[0] == 0) return;
  with_kernel(backend, [&](const auto& kernel) { LogitsPass(backend, kernel, x, w, run, dx)(); });
}

}  // namespace detail

/// Of each row nll = -log softmax(x w^T)[label], whether the label is the first largest logit, and
/// dx = d nll / dx (written). Throws if a label is not a row of w. The bits of a row do not depend
/// on the other rows.
///                                     x, dx (R, H)  w (V, H)  label, nll, correct (R)
template <class T>
void linear_cross_entropy(CpuBackend<T>& backend, In<T, 2> x, InRows<T> w,
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
    T* const to = dx.data + n * dim;
    w.visit([&](const auto& words) {
      const auto* const word = words.data + label(n) * dim;
      for (index_t d = 0; d < dim; ++d) to[d] = to[d] * share - T(word[d]);
    });
    nll(n) = T(std::log(run.sum[n]) + (double(run.top[n]) - double(run.label_logit[n])));
    correct(n) = run.best[n] == label(n);
  });
}

}  // namespace dflash
