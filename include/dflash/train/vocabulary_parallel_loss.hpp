#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "dflash/comm/collective_bytes.hpp"
#include "dflash/comm/group_operations.hpp"
#include "dflash/comm/traffic.hpp"
#include "dflash/model/vocabulary_parallel.hpp"
#include "dflash/train/draft_loss.hpp"

namespace dflash {

namespace detail {

/// A head whose words are split over the ranks of a group, each of which brings rows of its own.
/// Rows is what linear_cross_entropy_part takes for this rank's words.
template <Backend B, Communicator C, class Rows>
class SplitHead {
 public:
  using T = typename B::value_type;
  using A = typename B::accumulator_type;
  using Part = CrossEntropyPart<A>;

  SplitHead(B& backend, TensorParallelGroup<C>& group, VocabularySlice<T> head, const Rows& rows)
      : backend_(&backend), group_(&group), head_(head), head_rows_(&rows) {
    const Range own = group.share().of(head.total);
    expects(own.begin == head.first && own.size() == head.rows.shape[0],
            "vocabulary_parallel_draft_loss: the slice is not this rank's");
  }

  index_t vocabulary() const { return head_.total; }
  index_t chunk_rows(const LossOptions& options) const {
    return std::max<index_t>(1, options.rows_at_once<B>() / group_->size());
  }

  /// Tells the others how many rows this rank brings in each round, and their labels.
  index_t rounds(std::span<const LossChunk> chunks) {
    std::vector<index_t> rows;
    std::vector<std::int32_t> label;
    for (const LossChunk& chunk : chunks) {
      rows.push_back(chunk.rows());
      label.insert(label.end(), chunk.label.begin(), chunk.label.end());
    }
    const std::vector<index_t> one(ranks(), 1), own{index_t(rows.size())};
    const auto chunks_of = gathered(*backend_, *group_, own, one),
               all_rows = gathered(*backend_, *group_, rows, chunks_of);
    const index_t rounds = *std::max_element(chunks_of.begin(), chunks_of.end());
    rows_.assign(std::size_t(rounds), std::vector<index_t>(ranks()));
    labels_.assign(std::size_t(rounds), {});
    std::vector<index_t> labels_of(ranks());
    auto next = all_rows.begin();
    for (std::size_t rank = 0; rank < ranks(); ++rank)
      for (index_t round = 0; round < chunks_of[rank]; ++round, ++next) {
        rows_[std::size_t(round)][rank] = *next;
        labels_of[rank] += *next;
      }
    const auto labels = gathered(*backend_, *group_, label, labels_of);
    auto from = labels.begin();
    for (std::size_t rank = 0; rank < ranks(); ++rank)
      for (std::size_t round = 0; round < rows_.size(); ++round) {
        const auto end = from + rows_[round][rank];
        labels_[round].insert(labels_[round].end(), from, end);
        from = end;
      }
    return rounds;
  }

  void operator()(index_t round, In<T, 2> x, std::span<const std::int32_t>, std::span<double> nll,
                  std::span<std::uint8_t> correct, Out<T, 2> dx) {
    const std::vector<index_t>& rows = rows_[std::size_t(round)];
    const std::vector<std::int32_t>& label = labels_[std::size_t(round)];
    const index_t n = index_t(label.size()), width = x.shape[1];
    std::vector<index_t> elements;
    for (const index_t r : rows) elements.push_back(r * width);
    Tensor<B, T, 2> all_x(*backend_, {n, width}), all_dx(*backend_, {n, width});
    group_->communicator().all_gather(*backend_, reshape<1>(x, {x.size()}), elements,
                                      reshape<1>(all_x.view(), {n * width}));

    std::vector<std::int32_t> here;  // counted from the first row of the slice
    for (const std::int32_t word : label) here.push_back(std::int32_t(word - head_.first));
    const auto here_there = uploaded(*backend_, here.data(), n);
    Tensor<B, Part, 1> parts(*backend_, {n});
    linear_cross_entropy_part(*backend_, all_x.view(), *head_rows_, here_there.view(), parts.view(),
                              all_dx.view());

    const Factors factors = join(label, gathered_parts(parts), own_rows(rows), nll, correct);
    const auto scale = uploaded(*backend_, factors.scale.data(), n),
               label_share = uploaded(*backend_, factors.label_share.data(), n);
    linear_cross_entropy_merge(*backend_, head_.rows, here_there.view(), scale.view(),
                               label_share.view(), all_dx.view());
    scatter_sum_of_rows(*backend_, *group_, all_dx.view(), rows, dx);
  }

 private:
  std::size_t ranks() const { return std::size_t(group_->size()); }

  Range own_rows(const std::vector<index_t>& rows) const {
    index_t begin = 0;
    for (index_t rank = 0; rank < group_->rank(); ++rank) begin += rows[std::size_t(rank)];
    return {begin, begin + rows[std::size_t(group_->rank())]};
  }

  std::vector<Part> gathered_parts(const Tensor<B, Part, 1>& own) {
    const std::vector<index_t> counts(ranks(), own.size());
    Tensor<B, Part, 1> all(*backend_, {own.size() * group_->size()});
    group_->communicator().all_gather(*backend_, own.view(), counts, all.view());
    std::vector<Part> result(std::size_t(all.size()));
    backend_->download(all.view().data, result.data(), all.size());
    return result;
  }

  /// What linear_cross_entropy_merge takes.                                    all (R)
  struct Factors {
    std::vector<A> scale, label_share;
  };

  /// From the parts of all ranks: by how much this rank's part of each gradient counts, and the
  /// label; and of the rows [own) their nll and whether the label is the first largest logit.
  ///                                             label (R)  parts (t, R)
  Factors join(const std::vector<std::int32_t>& label, const std::vector<Part>& parts, Range own,
               std::span<double> nll, std::span<std::uint8_t> correct) const {
    const std::size_t rows = label.size();
    Factors factors{std::vector<A>(rows), std::vector<A>(rows)};
    for (std::size_t n = 0; n < rows; ++n) {
      double top = -std::numeric_limits<double>::infinity(), sum = 0, label_logit = 0;
      index_t best = -1;
      for (std::size_t rank = 0; rank < ranks(); ++rank) {
        const Part& part = parts[rank * rows + n];
        const Range words = even_cut(head_.total, group_->size(), index_t(rank));
        if (label[n] >= words.begin && label[n] < words.end) label_logit = double(part.label_logit);
        if (double(part.top) > top) {
          top = double(part.top);
          best = words.begin + part.best;
        }
      }
      const auto share = [&](std::size_t rank) {
        return std::exp(double(parts[rank * rows + n].top) - top);
      };
      for (std::size_t rank = 0; rank < ranks(); ++rank)
        sum += double(parts[rank * rows + n].sum) * share(rank);
      const double of_label = std::log(sum) + (top - label_logit);
      factors.scale[n] = A(share(std::size_t(group_->rank())) / sum);
      factors.label_share[n] = A(std::expm1(-of_label));
      const index_t at = index_t(n) - own.begin;
      if (at < 0 || at >= own.size()) continue;
      nll[std::size_t(at)] = of_label;
      correct[std::size_t(at)] = best == label[n];
    }
    return factors;
  }

  B* backend_;
  TensorParallelGroup<C>* group_;
  VocabularySlice<T> head_;
  const Rows* head_rows_;
  std::vector<std::vector<index_t>> rows_;         // per round: of each rank
  std::vector<std::vector<std::int32_t>> labels_;  // per round: of all ranks' rows
};

/// vocabulary_parallel_draft_loss, where `rows` is the slice as linear_cross_entropy takes it.
template <Backend B, Communicator C, class Rows>
LossResult split_draft_loss(B& backend, TensorParallelGroup<C>& group,
                            VocabularySlice<typename B::value_type> slice, const Rows& rows,
                            In<typename B::value_type, 2> hidden,
                            std::span<const std::int32_t> labels, std::span<const float> weights,
                            index_t block_size, index_t samples, const LossOptions& options,
                            Out<typename B::value_type, 2> doutput) {
  expects(slice.rows.shape[1] == hidden.shape[1],
          "vocabulary_parallel_draft_loss: the head is not as wide as the draft");
  if (group.size() == 1)
    return draft_loss(backend, rows, hidden, labels, weights, block_size, samples, options,
                      doutput);
  return draft_loss_under(backend, SplitHead<B, C, Rows>(backend, group, slice, rows), hidden,
                          labels, weights, block_size, samples, options, doutput);
}

}  // namespace detail

/// draft_loss under a head that the ranks of a group hold together, an equal share each: all of
/// them call it, each with blocks of its own (or none), and get their own loss and gradient.
/// Neither the head nor the logits are whole anywhere. The group's ranks exchange supervised rows
/// and their gradients, options.chunk_rows of all ranks at a time.
template <Backend B, Communicator C>
LossResult vocabulary_parallel_draft_loss(B& backend, TensorParallelGroup<C>& group,
                                          VocabularySlice<typename B::value_type> head,
                                          In<typename B::value_type, 2> hidden,
                                          std::span<const std::int32_t> labels,
                                          std::span<const float> weights, index_t block_size,
                                          index_t samples, const LossOptions& options,
                                          Out<typename B::value_type, 2> doutput) {
  return detail::split_draft_loss(backend, group, head, head.rows, hidden, labels, weights,
                                  block_size, samples, options, doutput);
}

/// A rank's rows of a head as its backend has prepared them: those of words
/// [first, first + rows) of `total`.
template <class P>
struct PreparedSlice {
  P head;
  index_t first = 0, total = 0;
};

/// The same under a head that the ranks' backends have prepared.
template <Backend B, Communicator C, PreparedHead<B> P>
LossResult vocabulary_parallel_draft_loss(B& backend, TensorParallelGroup<C>& group,
                                          const PreparedSlice<P>& head,
                                          In<typename B::value_type, 2> hidden,
                                          std::span<const std::int32_t> labels,
                                          std::span<const float> weights, index_t block_size,
                                          index_t samples, const LossOptions& options,
                                          Out<typename B::value_type, 2> doutput) {
  return detail::split_draft_loss(backend, group, {head.head.rows(), head.first, head.total},
                                  head.head, hidden, labels, weights, block_size, samples, options,
                                  doutput);
}

/// What one rank sends in vocabulary_parallel_draft_loss, if rank p brings rows[p][i] supervised
/// rows in its i-th chunk, for a draft of width `hidden`.
inline Traffic vocabulary_parallel_loss_traffic(Share rank, index_t hidden,
                                                const std::vector<std::vector<index_t>>& rows,
                                                NumberBytes bytes) {
  const index_t part =
      bytes.sum == 8 ? sizeof(CrossEntropyPart<double>) : sizeof(CrossEntropyPart<float>);
  Traffic traffic;
  if (rank.ranks == 1) return traffic;
  const auto& own = rows[std::size_t(rank.rank)];
  std::size_t rounds = 0;
  for (const auto& chunks : rows) rounds = std::max(rounds, chunks.size());
  index_t labels = 0;
  for (const index_t n : own) labels += n;
  const auto gather = [&](index_t n, index_t bytes) {
    traffic.all_gather.add(all_gather_bytes(rank, n, bytes));
  };
  gather(1, sizeof(index_t));
  gather(index_t(own.size()), sizeof(index_t));
  gather(labels, sizeof(std::int32_t));
  for (std::size_t round = 0; round < rounds; ++round) {
    index_t all = 0;
    for (const auto& chunks : rows) all += round < chunks.size() ? chunks[round] : 0;
    const index_t here = round < own.size() ? own[round] : 0;
    gather(here * hidden, bytes.value);
    gather(all, part);
    traffic.reduce_scatter_sum.add(reduce_scatter_bytes(all * hidden, here * hidden, bytes.sum));
  }
  return traffic;
}

}  // namespace dflash
