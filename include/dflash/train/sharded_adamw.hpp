#pragma once

#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "dflash/comm/communicator.hpp"
#include "dflash/comm/sequence_layout.hpp"
#include "dflash/train/adamw.hpp"
#include "dflash/train/training_metrics.hpp"

namespace dflash {

/// Adds up loss, denominator and counts over the world: what every rank then knows.
template <Backend B, class C>
LossResult sum_over_ranks(B& backend, C& world, const LossResult& own) {
  HostVector<double> numbers = own.flat();
  auto there = uploaded(backend, numbers.data(), index_t(numbers.size()));
  world.all_reduce_sum(backend, there.view());
  backend.download(there.view().data, numbers.data(), index_t(numbers.size()));
  return LossResult::from_flat(numbers);
}

/// AdamW over the ranks of a world: each rank adds up its slice of everyone's gradients, steps that
/// slice of masters and moments, and gathers the others' weights (ZeRO-1, arXiv:1910.02054). The
/// clip uses the norm of the whole gradient, so the step is that of one rank.
template <Backend B, class C>
class ShardedAdamW {
 public:
  using T = typename B::value_type;
  using Sum = typename B::accumulator_type;

  /// The world outlives the optimizer. All ranks hold the same weights.
  ShardedAdamW(B& backend, C& world, View<T, 1> weights, std::vector<ParameterSlot> slots,
               AdamWOptions options = {})
      : world_(&world),
        local_(backend, weights, std::move(slots), options,
               even_cut(weights.size(), world.size(), world.rank())) {
    for (int r = 0; r < world.size(); ++r)
      counts_.push_back(even_cut(weights.size(), world.size(), r).size());
  }

  /// One step along the sum over all ranks of `gradients`, divided by the denominator of all ranks.
  /// Returns the norm of that before clipping; if it is not finite nothing changes. Uses
  /// `gradients` as scratch memory.
  double step(View<T, 1> weights, View<Sum, 1> gradients, double rate, double denominator) {
    B& backend = local_.backend();
    world_->reduce_scatter_sum(backend, In<Sum, 1>(gradients), counts_,
                               gradients.rows(local_.slice()));
    const double norm = std::sqrt(summed(local_.squared_norm(gradients))) / std::abs(denominator);
    if (local_.apply(weights, gradients, rate, denominator, norm))
      world_->all_gather(backend, In<T, 1>(weights.rows(local_.slice())), counts_, weights);
    return norm;
  }

  /// The state of all ranks as one optimizer, for a checkpoint of whole tensors.
  AdamW<B> whole(View<T, 1> weights) {
    B& backend = local_.backend();
    AdamW<B> all(backend, weights, local_.slots(), local_.options());
    all.steps() = local_.steps();
    for (const OptimizerPart part : kept)
      world_->all_gather(backend, In<Master, 1>(local_.view(part, weights)), counts_,
                         all.view(part, weights));
    return all;
  }

  /// Takes this rank's slice of a state of whole tensors.
  void take(AdamW<B>& all, View<T, 1> weights) {
    local_.steps() = all.steps();
    for (const OptimizerPart part : kept)
      local_.backend().copy(all.view(part, weights).rows(local_.slice()).data,
                            local_.view(part, weights).data, local_.slice().size());
  }

 private:
  using Master = typename AdamW<B>::Master;

  /// Of what a rank keeps a slice: not of masters that are the weights themselves.
  static constexpr auto kept = [] {
    if constexpr (AdamW<B>::has_masters)
      return std::array{OptimizerPart::master, OptimizerPart::first_moment,
                        OptimizerPart::second_moment};
    else
      return std::array{OptimizerPart::first_moment, OptimizerPart::second_moment};
  }();

  double summed(double own) {
    B& backend = local_.backend();
    auto there = uploaded(backend, &own, 1);
    world_->all_reduce_sum(backend, there.view());
    backend.download(there.view().data, &own, 1);
    return own;
  }

  C* world_;
  AdamW<B> local_;
  std::vector<index_t> counts_;  // of each rank's slice
};

}  // namespace dflash
