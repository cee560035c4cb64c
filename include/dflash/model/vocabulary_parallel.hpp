#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dflash/model/parallel_linear.hpp"

namespace dflash {

/// Some rows of an embedding or of a head: those of tokens [first, first + rows) of `total`.
template <class T>
struct VocabularySlice {
  View<const T, 2> rows;  // (V / t, H)
  index_t first = 0, total = 0;

  Range range() const { return {first, first + rows.shape[0]}; }
};

/// y = the rows of an embedding that the ranks hold together. Every rank asks for the same tokens;
/// for those of others it contributes zeros to the sum.      ids, y (N), (N, H)
template <Backend B, Communicator C, class T>
void gather_vocabulary_rows(B& backend, TensorParallelGroup<C>& group,
                            const VocabularySlice<T>& embedding, std::span<const std::int32_t> ids,
                            View<T, 2> y) {
  const index_t width = embedding.rows.shape[1];
  std::vector<std::int32_t> id, row;
  for (std::size_t n = 0; n < ids.size(); ++n)
    if (ids[n] >= embedding.range().begin && ids[n] < embedding.range().end) {
      id.push_back(std::int32_t(ids[n] - embedding.first));
      row.push_back(std::int32_t(n));
    }
  const auto id_there = uploaded(backend, id.data(), index_t(id.size()));
  if (id.size() == ids.size()) {
    gather_rows(backend, embedding.rows, id_there.view(), y);
  } else {
    const auto row_there = uploaded(backend, row.data(), index_t(row.size()));
    Tensor<B, T, 2> own(backend, {index_t(id.size()), width});
    gather_rows(backend, embedding.rows, id_there.view(), own.view());
    fill(backend, y, T(0));
    scatter_rows(backend, own.view(), row_there.view(), y);
  }
  sum_over_ranks(backend, group, y);
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
