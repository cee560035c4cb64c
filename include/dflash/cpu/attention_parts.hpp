#pragma once

#include <algorithm>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/attention_tile.hpp"
#include "dflash/cpu/backend.hpp"

namespace dflash::detail {

/// The tiles of attention's backward in parts that several threads may take at once: neighbouring
/// tiles, about as much work in each. The first part adds to the keys' gradients, the others to
/// sums of their own, which are added up in order. The parts depend on the shapes alone, so that
/// threads do not change the sums.
template <class T>
class GradientParts {
 public:
  GradientParts(CpuBackend<T>& backend, AttentionPlan& plan, const KeyValue<const T>& kv,
                const KeyValue<T>& dkv)
      : dkv_(dkv), width_(dkv.k_context.stride()) {
    const index_t room = width_ > 0 ? most_memory / (2 * width_) : 0,
                  heads = std::max<index_t>(plan.kv_heads(), 1),
                  wanted = std::min((usual_tasks + heads - 1) / heads, most_parts);
    double all = 0;
    for (index_t t = 0; t < plan.tiles(); ++t) all += work(plan, t);
    double done = 0;
    for (index_t t = 0; t < plan.tiles(); ++t) {
      const Range keys = plan.context(t);
      const bool due = count_ == 0 || (done >= all * double(count_) / double(wanted) &&
                                       count_ < wanted && rows_ + kv.k_context.shape[0] <= room);
      if (due) {
        if (count_ > 1) rows_ += parts_[count_ - 1].keys.size();
        parts_[count_++] = {{t, t}, keys, rows_};
      }
      Part& part = parts_[count_ - 1];
      part.tiles.end = t + 1;
      if (part.keys.size() <= 0) part.keys = keys;
      if (keys.size() > 0)
        part.keys = {std::min(part.keys.begin, keys.begin), std::max(part.keys.end, keys.end)};
      done += work(plan, t);
    }
    if (count_ > 1) rows_ += parts_[count_ - 1].keys.size();
    sums_ = backend.template allocate<T>(2 * rows_ * width_);
  }

  index_t count() const { return count_; }
  Range tiles(index_t part) const { return parts_[part].tiles; }

  /// Where a part adds to; what is its own there of key/value head g is zero.
  KeyValue<T> clear(index_t part, index_t g, index_t dim) const {
    if (part == 0) return dkv_;
    const Part& own = parts_[part];
    KeyValue<T> to = dkv_;
    to.k_context.data = sum(own, 0) - own.keys.begin * width_;
    to.v_context.data = sum(own, 1) - own.keys.begin * width_;
    T* const both[] = {to.k_context.data, to.v_context.data};
    for (T* data : both)
      for (index_t n = own.keys.begin; n < own.keys.end; ++n)
        std::fill_n(data + n * width_ + g * dim, dim, T(0));
    return to;
  }

  /// Adds the sums of all parts but the first to the gradients.
  void add_up(CpuBackend<T>& backend) const {
    if (count_ < 2) return;
    const index_t rows = dkv_.k_context.shape[0];
    backend.for_parts(rows, 2 * count_ * width_, [&](Range some) {
      for (index_t i = 1; i < count_; ++i) {
        const Part& part = parts_[i];
        const index_t begin = std::max(some.begin, part.keys.begin),
                      size = (std::min(some.end, part.keys.end) - begin) * width_;
        add_to(dkv_.k_context.data, sum(part, 0), begin, part.keys.begin, size);
        add_to(dkv_.v_context.data, sum(part, 1), begin, part.keys.begin, size);
      }
    });
  }

 private:
  static constexpr index_t usual_tasks = 32, most_parts = 16, most_memory = 1 << 24;

  struct Part {
    Range tiles, keys;  // rows of the context that some of the tiles see
    index_t first;      // where its sums lie, in rows
  };

  static double work(AttentionPlan& plan, index_t t) { return double(plan.context(t).size() + 1); }
  T* sum(const Part& part, int which) const {
    return sums_.data() + (2 * part.first + which * part.keys.size()) * width_;
  }
  void add_to(T* to, const T* from, index_t begin, index_t first, index_t size) const {
    to += begin * width_, from += (begin - first) * width_;
    for (index_t i = 0; i < size; ++i) to[i] += from[i];
  }

  KeyValue<T> dkv_;
  index_t width_;  // of a context row
  Part parts_[most_parts];
  index_t count_ = 0, rows_ = 0;
  mutable CpuBuffer<T> sums_;
};

}  // namespace dflash::detail
