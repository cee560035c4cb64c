#pragma once

#include <span>
#include <type_traits>
#include <vector>

#include "dflash/comm/tensor_parallel_group.hpp"
#include "dflash/core/host_copy.hpp"
#include "dflash/core/tensor.hpp"

/// What the ranks of a group add up or tell each other. Sums are in accumulator precision.
namespace dflash {

/// Host values of all ranks, one after the other; rank p has counts[p].
template <Backend B, Communicator C, class U>
std::vector<U> gathered(B& backend, C& ranks, const std::vector<U>& own,
                        std::span<const index_t> counts) {
  index_t total = 0;
  for (const index_t count : counts) total += count;
  const auto there = uploaded(backend, own.data(), index_t(own.size()));
  Tensor<B, U, 1> all(backend, {total});
  ranks.all_gather(backend, View<const U, 1>(there.view()), counts, all.view());
  return downloaded(backend, all.view());
}
template <Backend B, Communicator C, class U>
std::vector<U> gathered(B& backend, TensorParallelGroup<C>& group, const std::vector<U>& own,
                        std::span<const index_t> counts) {
  return gathered(backend, group.communicator(), own, counts);
}

/// One number of each rank.
template <Backend B, Communicator C>
std::vector<index_t> one_of_each(B& backend, C& ranks, index_t own) {
  return gathered(backend, ranks, std::vector{own},
                  std::vector<index_t>(std::size_t(ranks.size()), 1));
}

/// x = sum of the ranks' x, the same on all; nothing is done on a group of one.
template <Backend B, Communicator C, class T, int Rank>
void sum_over_ranks(B& backend, TensorParallelGroup<C>& group, View<T, Rank> x) {
  using A = typename B::accumulator_type;
  if (group.size() == 1) return;
  const View<T, 1> flat = reshape<1>(x, {x.size()});
  if constexpr (std::is_same_v<T, A>) {
    group.communicator().all_reduce_sum(backend, flat);
  } else {
    Tensor<B, A, 1> wide(backend, {x.size()});
    convert(backend, View<const T, 1>(flat), wide.view());
    group.communicator().all_reduce_sum(backend, wide.view());
    convert(backend, View<const A, 1>(wide.view()), flat);
  }
}

/// own = this rank's rows of the sum of the ranks' x; of the sum's rows each gets rows[rank].
///                                                         x (sum of rows, C)  own (own rows, C)
template <Backend B, Communicator C, class T>
void scatter_sum_of_rows(B& backend, TensorParallelGroup<C>& group, View<T, 2> x,
                         std::span<const index_t> rows, View<T, 2> own) {
  using A = typename B::accumulator_type;
  std::vector<index_t> counts;
  for (const index_t n : rows) counts.push_back(n * x.shape[1]);
  const View<T, 1> from = reshape<1>(x, {x.size()}), to = reshape<1>(own, {own.size()});
  if constexpr (std::is_same_v<T, A>) {
    group.communicator().reduce_scatter_sum(backend, View<const T, 1>(from), counts, to);
  } else {
    Tensor<B, A, 1> wide(backend, {x.size()}), sum(backend, {own.size()});
    convert(backend, View<const T, 1>(from), wide.view());
    group.communicator().reduce_scatter_sum(backend, View<const A, 1>(wide.view()), counts,
                                            sum.view());
    convert(backend, View<const A, 1>(sum.view()), to);
  }
}

}  // namespace dflash
