#pragma once

#include <array>
#include <cmath>
#include <optional>
#include <span>
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

/// AdamW over the ranks of a world: each rank adds up its slices of everyone's gradients, steps
/// these slices of masters and moments, and gathers the others' weights (ZeRO-1, arXiv:1910.02054).
/// The clip uses the norm of the whole gradient, so the step is that of one rank. Gradients may be
/// sent in buckets, each as soon as it is final, while backward goes on with the others.
template <Backend B, class C>
class ShardedAdamW {
 public:
  using T = typename B::value_type;
  using Sum = typename B::accumulator_type;

  /// The world outlives the optimizer. All ranks hold the same weights. The buckets, those of
  /// gradient_buckets or any others that make up the buffer, are cut into a slice for each rank;
  /// without them there is one.
  ShardedAdamW(B& backend, C& world, View<T, 1> weights, const std::vector<ParameterSlot>& slots,
               AdamWOptions options = {}, std::vector<Range> buckets = {})
      : world_(&world) {
    if (buckets.empty()) buckets.push_back({0, weights.size()});
    for (const Range& range : buckets) {
      std::vector<index_t> counts;
      for (int r = 0; r < world.size(); ++r)
        counts.push_back(even_cut(range.size(), world.size(), r).size());
      const index_t begin = range.begin + even_cut(range.size(), world.size(), world.rank()).begin;
      const Range slice{begin, begin + counts[std::size_t(world.rank())]};
      buckets_.push_back(
          {range, std::move(counts), AdamW<B>(backend, weights, slots, options, slice), {}});
    }
  }

  /// Bucket i of `gradients` is final in this step: its sum is on its way while the caller goes on.
  /// All ranks start the same buckets in the same order; step starts the others. The gradients
  /// stay as they are until step, or else outlive the optimizer.
  void start(View<Sum, 1> gradients, index_t i) {
    if (world_->size() > 1) start(gradients, buckets_.at(std::size_t(i)));
  }

  /// One step along the sum over all ranks of `gradients`, divided by the denominator of all ranks.
  /// Returns the norm of that before clipping; if it is not finite nothing changes. Uses
  /// `gradients` as scratch memory.
  double step(View<T, 1> weights, View<Sum, 1> gradients, double rate, double denominator) {
    for (Bucket& bucket : buckets_)
      if (!bucket.sum) start(gradients, bucket);
    double squares = 0;
    for (Bucket& bucket : buckets_) {
      bucket.sum->wait();
      bucket.sum.reset();
      squares += bucket.own.squared_norm(gradients);
    }
    const double norm = std::sqrt(summed(squares)) / std::abs(denominator);
    for (Bucket& bucket : buckets_)
      if (bucket.own.apply(weights, gradients, rate, denominator, norm))
        world_->all_gather(backend(), In<T, 1>(weights.rows(bucket.own.slice())), bucket.counts,
                           weights.rows(bucket.range));
    return norm;
  }

  /// The state of all ranks as one optimizer, for a checkpoint of whole tensors.
  AdamW<B> whole(View<T, 1> weights) {
    AdamW<B>& first = buckets_.front().own;
    AdamW<B> all(backend(), weights, first.slots(), first.options());
    all.steps() = first.steps();
    for (const OptimizerPart part : kept)
      for (Bucket& bucket : buckets_)
        world_->all_gather(backend(), In<Master, 1>(bucket.own.view(part, weights)), bucket.counts,
                           all.view(part, weights).rows(bucket.range));
    return all;
  }

  /// f(the state of all ranks as one optimizer), to save it: one rank has it already.
  template <class F>
  void visit_whole(View<T, 1> weights, F&& f) {
    if (alone()) return f(buckets_.front().own);
    AdamW<B> all = whole(weights);
    f(all);
  }

  /// f(an optimizer of whole tensors), which is to fill it; takes what it is then.
  template <class F>
  void fill_whole(View<T, 1> weights, F&& f) {
    AdamW<B>& own = buckets_.front().own;
    if (alone()) return f(own);
    AdamW<B> all(backend(), weights, own.slots(), own.options());
    f(all);
    take(all, weights);
  }

  /// Takes this rank's slices of a state of whole tensors.
  void take(AdamW<B>& all, View<T, 1> weights) {
    for (Bucket& bucket : buckets_) {
      bucket.own.steps() = all.steps();
      for (const OptimizerPart part : kept)
        backend().copy(all.view(part, weights).rows(bucket.own.slice()).data,
                       bucket.own.view(part, weights).data, bucket.own.slice().size());
    }
  }

 private:
  using Master = typename AdamW<B>::Master;
  using Pending = decltype(std::declval<C&>().start_reduce_scatter_sum(
      std::declval<B&>(), std::declval<In<Sum, 1>>(), std::declval<std::span<const index_t>>(),
      std::declval<View<Sum, 1>>()));

  struct Bucket {
    Range range;                  // of the flat buffer
    std::vector<index_t> counts;  // of each rank's slice
    AdamW<B> own;                 // of this rank's
    std::optional<Pending> sum;   // of the gradients, once started
  };

  /// Of what a rank keeps a slice: not of masters that are the weights themselves.
  static constexpr auto kept = [] {
    if constexpr (AdamW<B>::has_masters)
      return std::array{OptimizerPart::master, OptimizerPart::first_moment,
                        OptimizerPart::second_moment};
    else
      return std::array{OptimizerPart::first_moment, OptimizerPart::second_moment};
  }();

  B& backend() const { return buckets_.front().own.backend(); }
  bool alone() const { return world_->size() == 1 && buckets_.size() == 1; }

  void start(View<Sum, 1> gradients, Bucket& bucket) {
    expects(!bucket.sum.has_value(), "ShardedAdamW: a bucket was started twice in a step");
    bucket.sum.emplace(
        world_->start_reduce_scatter_sum(backend(), In<Sum, 1>(gradients.rows(bucket.range)),
                                         bucket.counts, gradients.rows(bucket.own.slice())));
  }

  double summed(double own) {
    auto there = uploaded(backend(), &own, 1);
    world_->all_reduce_sum(backend(), there.view());
    backend().download(there.view().data, &own, 1);
    return own;
  }

  C* world_;
  std::vector<Bucket> buckets_;
};

}  // namespace dflash
