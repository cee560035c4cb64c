#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "dflash/comm/collective_bytes.hpp"
#include "dflash/comm/group_operations.hpp"
#include "dflash/comm/traffic.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/host_copy.hpp"
#include "dflash/core/operations.hpp"
#include "dflash/core/stored_rows.hpp"

namespace dflash {

/// Some rows of an embedding or of a head: those of tokens [first, first + rows) of `total`.
template <class T>
struct VocabularySlice {
  StoredRows<const T> rows;  // (V / t, H)
  index_t first = 0, total = 0;

  Range range() const { return {first, first + rows.shape[0]}; }
};

/// y = the rows of a slice for some tokens, and zeros for those of other slices.
///                                                                                ids (N)  y (N, H)
template <Backend B, class T>
void gather_rows_of_slice(B& backend, const VocabularySlice<T>& slice,
                          std::span<const std::int32_t> ids, View<T, 2> y) {
  std::vector<std::int32_t> id, row;
  for (std::size_t n = 0; n < ids.size(); ++n)
    if (ids[n] >= slice.range().begin && ids[n] < slice.range().end) {
      id.push_back(std::int32_t(ids[n] - slice.first));
      row.push_back(std::int32_t(n));
    }
  const auto id_there = uploaded(backend, id.data(), index_t(id.size()));
  if (id.size() == ids.size()) return gather_rows(backend, slice.rows, id_there.view(), y);
  const auto row_there = uploaded(backend, row.data(), index_t(row.size()));
  Tensor<B, T, 2> own(backend, {index_t(id.size()), y.shape[1]});
  gather_rows(backend, slice.rows, id_there.view(), own.view());
  fill(backend, y, T(0));
  scatter_rows(backend, own.view(), row_there.view(), y);
}

/// y = rows of an embedding that the ranks hold together, for the same tokens on every rank.
///                                                                                ids (N)  y (N, H)
template <Backend B, Communicator C, class T>
void gather_vocabulary_rows(B& backend, TensorParallelGroup<C>& group,
                            const VocabularySlice<T>& embedding, std::span<const std::int32_t> ids,
                            View<T, 2> y) {
  gather_rows_of_slice(backend, embedding, ids, y);
  sum_over_ranks(backend, group, y);
}

/// The same for tokens of its own on every rank, maybe none; a token that a rank has often (a mask)
/// is asked for once.                                             ids (N), of the backend  y (N, H)
template <Backend B, Communicator C, class T>
void gather_own_vocabulary_rows(B& backend, TensorParallelGroup<C>& group,
                                const VocabularySlice<T>& embedding,
                                View<const std::int32_t, 1> ids, View<T, 2> y) {
  if (group.size() == 1) return gather_rows(backend, embedding.rows, ids, y);
  const std::vector<std::int32_t> wanted = downloaded(backend, ids);
  std::vector<std::int32_t> own = wanted, place;
  std::sort(own.begin(), own.end());
  own.erase(std::unique(own.begin(), own.end()), own.end());
  expects(own.empty() || (own.front() >= 0 && own.back() < embedding.total),
          "gather_own_vocabulary_rows: a token is outside the vocabulary");
  for (const std::int32_t id : wanted)
    place.push_back(std::int32_t(std::lower_bound(own.begin(), own.end(), id) - own.begin()));

  const std::vector<index_t> one(std::size_t(group.size()), 1);
  const auto counts = gathered(backend, group, std::vector{index_t(own.size())}, one);
  const auto all = gathered(backend, group, own, counts);
  Tensor<B, T, 2> parts(backend, {index_t(all.size()), y.shape[1]}),
      table(backend, {index_t(own.size()), y.shape[1]});
  gather_rows_of_slice(backend, embedding, all, parts.view());
  scatter_sum_of_rows(backend, group, parts.view(), counts, table.view());
  const auto place_there = uploaded(backend, place.data(), ids.size());
  gather_rows(backend, table.view(), place_there.view(), y);
}

/// What a rank sends in gather_own_vocabulary_rows, if rank p has distinct[p] different tokens.
inline Traffic own_vocabulary_rows_traffic(Share rank, index_t hidden,
                                           std::span<const index_t> distinct, NumberBytes bytes) {
  Traffic traffic;
  if (rank.ranks == 1) return traffic;
  const index_t own = distinct[std::size_t(rank.rank)];
  index_t all = 0;
  for (const index_t n : distinct) all += n;
  traffic.all_gather.add(all_gather_bytes(rank, 1, sizeof(index_t)));
  traffic.all_gather.add(all_gather_bytes(rank, own, sizeof(std::int32_t)));
  traffic.reduce_scatter_sum.add(reduce_scatter_bytes(all * hidden, own * hidden, bytes.sum));
  return traffic;
}

/// Columns that are split over the ranks, side by side on every one of them.
///                                                    part (N, share of total)  result (N, total)
template <Backend B, Communicator C, class T>
Tensor<B, T, 2> gather_columns(B& backend, TensorParallelGroup<C>& group, Tensor<B, T, 2> part,
                               index_t total) {
  if (group.size() == 1) return part;
  const index_t n = part.view().shape[0];
  std::vector<index_t> counts;
  for (index_t rank = 0; rank < group.size(); ++rank)
    counts.push_back(n * even_cut(total, group.size(), rank).size());
  Tensor<B, T, 1> parts(backend, {n * total});
  group.communicator().all_gather(backend, reshape<1>(View<const T, 2>(part.view()), {part.size()}),
                                  counts, parts.view());
  Tensor<B, T, 2> all(backend, {n, total});
  fill(backend, all.view(), T(0));
  for (index_t rank = 0; rank < group.size(); ++rank) {
    const Range columns = even_cut(total, group.size(), rank);
    const View<const T, 2> from{parts.view().data + n * columns.begin, {n, columns.size()}};
    add_columns(backend, from, columns.begin, all.view());
  }
  return all;
}

}  // namespace dflash
