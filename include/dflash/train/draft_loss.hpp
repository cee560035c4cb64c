#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "dflash/core/host_vector.hpp"
#include "dflash/core/stored_rows.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/train/loss.hpp"

namespace dflash {

namespace detail {

/// The next whole blocks, from `begin` on, that hold at most `limit` supervised rows; at least one.
inline Range next_blocks(std::span<const float> weights, index_t block_size, index_t begin,
                         index_t limit) {
  const index_t blocks = index_t(weights.size()) / block_size;
  index_t end = begin, rows = 0;
  for (; end < blocks; ++end) {
    const auto block = weights.subspan(std::size_t(end * block_size), std::size_t(block_size));
    rows += std::count_if(block.begin(), block.end(), [](float weight) { return weight > 0; });
    if (rows > limit && end > begin) break;
  }
  return {begin, end};
}

/// Whole blocks whose supervised slots reach the head together.
struct LossChunk {
  Range slots;
  HostVector<std::int32_t> row, label;  // of the supervised ones, at least one

  index_t rows() const { return index_t(row.size()); }
};

/// All blocks with supervised slots, in chunks of at most `limit` rows (a block is never cut).
/// Error if a label lies outside the vocabulary.
inline HostVector<LossChunk> loss_chunks(std::span<const std::int32_t> labels,
                                         std::span<const float> weights, index_t block_size,
                                         index_t vocabulary, index_t limit) {
  const index_t all_blocks = index_t(weights.size()) / block_size;
  HostVector<LossChunk> chunks;
  for (Range blocks; blocks.end < all_blocks;) {
    blocks = next_blocks(weights, block_size, blocks.end, limit);
    LossChunk chunk{{blocks.begin * block_size, blocks.end * block_size}, {}, {}};
    for (index_t i = chunk.slots.begin; i < chunk.slots.end; ++i) {
      if (!(weights[std::size_t(i)] > 0)) continue;
      const std::int32_t label = labels[std::size_t(i)];
      if (label < 0 || label >= vocabulary)
        throw Error("label " + std::to_string(label) + " of block " +
                    std::to_string(i / block_size) + ", slot " + std::to_string(i % block_size) +
                    " is outside the head's vocabulary of " + std::to_string(vocabulary));
      chunk.row.push_back(std::int32_t(i));
      chunk.label.push_back(label);
    }
    if (chunk.rows() > 0) chunks.push_back(std::move(chunk));
  }
  return chunks;
}

/// What a head says of supervised rows: nll and whether the label is the likeliest, per row, and
/// d nll / dx. This one is the whole head, Rows what linear_cross_entropy takes for it.
template <Backend B, class Rows>
class WholeHead {
 public:
  using T = typename B::value_type;

  WholeHead(B& backend, const Rows& head, index_t vocabulary)
      : backend_(&backend), head_(&head), vocabulary_(vocabulary) {}

  index_t vocabulary() const { return vocabulary_; }
  index_t chunk_rows(const LossOptions& options) const { return options.rows_at_once<B>(); }
  /// How often it wants to be called; without rows once the chunks are used up.
  index_t rounds(std::span<const LossChunk> chunks) { return index_t(chunks.size()); }

  void operator()(index_t, In<T, 2> x, std::span<const std::int32_t> label, std::span<double> nll,
                  std::span<std::uint8_t> correct, Out<T, 2> dx) {
    using A = typename B::accumulator_type;
    const index_t rows = x.shape[0];
    const auto labels = uploaded(*backend_, label.data(), rows);
    Tensor<B, A, 1> values(*backend_, {rows});
    Tensor<B, std::uint8_t, 1> hits(*backend_, {rows});
    linear_cross_entropy(*backend_, x, *head_, labels.view(), values.view(), hits.view(), dx);
    HostVector<A> value(nll.size());
    backend_->download(values.view().data, value.data(), rows);
    backend_->download(hits.view().data, correct.data(), rows);
    std::copy(value.begin(), value.end(), nll.begin());
  }

 private:
  B* backend_;
  const Rows* head_;
  index_t vocabulary_;
};

/// draft_loss with any kind of head.
template <Backend B, class Head>
LossResult draft_loss_under(B& backend, Head&& head, In<typename B::value_type, 2> hidden,
                            std::span<const std::int32_t> labels, std::span<const float> weights,
                            index_t block_size, index_t samples, const LossOptions& options,
                            Out<typename B::value_type, 2> doutput) {
  using T = typename B::value_type;
  using A = typename B::accumulator_type;
  const index_t width = hidden.shape[1], slots = hidden.shape[0];
  expects(block_size >= 1 && slots % block_size == 0 && index_t(labels.size()) == slots &&
              index_t(weights.size()) == slots && doutput.shape[0] == slots &&
              doutput.shape[1] == width,
          "draft_loss: shapes differ");
  LossResult result(block_size);
  fill(backend, doutput, T(0));
  const auto chunks =
      loss_chunks(labels, weights, block_size, head.vocabulary(), head.chunk_rows(options));
  const index_t rounds = head.rounds(chunks);
  const LossChunk idle;
  for (index_t round = 0; round < rounds; ++round) {
    const LossChunk& chunk = round < index_t(chunks.size()) ? chunks[std::size_t(round)] : idle;
    const index_t rows = chunk.rows();
    const auto rows_there = uploaded(backend, chunk.row.data(), rows);
    Tensor<B, T, 2> x(backend, {rows, width}), dx(backend, {rows, width});
    gather_rows(backend, hidden, rows_there.view(), x.view());
    HostVector<double> row_nll(chunk.row.size());
    HostVector<std::uint8_t> row_correct(chunk.row.size());
    head(round, x.view(), chunk.label, row_nll, row_correct, dx.view());
    if (rows == 0) continue;

    const auto first = std::size_t(chunk.slots.begin), count = std::size_t(chunk.slots.size());
    HostVector<double> nll(count), factors(count);
    HostVector<std::uint8_t> correct(count);
    for (std::size_t r = 0; r < chunk.row.size(); ++r) {
      nll[std::size_t(chunk.row[r]) - first] = row_nll[r];
      correct[std::size_t(chunk.row[r]) - first] = row_correct[r];
    }
    result +=
        block_loss(weights.subspan(first, count), nll, correct, block_size, 0, options, factors);
    HostVector<A> scale;
    for (const std::int32_t row : chunk.row) scale.push_back(A(factors[std::size_t(row) - first]));
    const auto scale_there = uploaded(backend, scale.data(), rows);
    scale_rows(backend, scale_there.view(), dx.view());
    scatter_rows(backend, dx.view(), rows_there.view(), doutput);
  }
  result.denominator = loss_denominator(weights, block_size, samples, options);
  return result;
}

}  // namespace detail

/// A head that a backend has prepared for linear_cross_entropy, such as Float8Head.
template <class P, class B>
concept PreparedHead = requires(const P& head) {
  { head.rows() } -> std::convertible_to<In<typename B::value_type, 2>>;  // the head itself
};

/// The loss of the draft's output under the target's head, and `doutput` = d numerator / d hidden
/// (written). Only supervised rows reach the head, a chunk at a time: logits never exist whole.
/// `samples` is what D-PACE divides by. Error if a label lies outside the head's vocabulary.
///                          head (V, H)  hidden, doutput (N * K, H)  labels, weights (N * K)
template <Backend B>
LossResult draft_loss(B& backend, InRows<typename B::value_type> head,
                      In<typename B::value_type, 2> hidden, std::span<const std::int32_t> labels,
                      std::span<const float> weights, index_t block_size, index_t samples,
                      const LossOptions& options, Out<typename B::value_type, 2> doutput) {
  expects(head.shape[1] == hidden.shape[1], "draft_loss: the head is not as wide as the draft");
  return detail::draft_loss_under(backend, detail::WholeHead(backend, head, head.shape[0]), hidden,
                                  labels, weights, block_size, samples, options, doutput);
}

/// The same under a head that the backend has prepared.
template <Backend B, PreparedHead<B> P>
LossResult draft_loss(B& backend, const P& head, In<typename B::value_type, 2> hidden,
                      std::span<const std::int32_t> labels, std::span<const float> weights,
                      index_t block_size, index_t samples, const LossOptions& options,
                      Out<typename B::value_type, 2> doutput) {
  expects(head.rows().shape[1] == hidden.shape[1],
          "draft_loss: the head is not as wide as the draft");
  return detail::draft_loss_under(backend, detail::WholeHead(backend, head, head.rows().shape[0]),
                                  hidden, labels, weights, block_size, samples, options, doutput);
}

}  // namespace dflash
