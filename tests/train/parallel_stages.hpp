#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <mutex>
#include <span>

#include "dflash/comm/thread_communicator.hpp"
#include "dflash/model/ulysses_attention.hpp"
#include "model/draft_fixture.hpp"

/// One batch over the ranks of a sequence group, and its tensors put together again.
namespace parallel_stages {

using namespace dflash;

using B = CpuBackend<double>;
using Group = SequenceParallelGroup<ThreadCommunicator>;
using Model = DraftModel<DFlashBlock<UlyssesAttention<B, ThreadCommunicator>>>;
using Values = std::vector<double>;

inline const SequenceLayout layouts[] = {{1, 1}, {2, 1}, {3, 1}, {6, 1}, {1, 2},
                                         {1, 3}, {2, 2}, {3, 2}, {4, 2}};

/// Samples longer than a stripe and shorter than a block, packed; the first layer slides.
struct Problem {
  DraftConfig config = small_config(true, true);
  DraftProblem<double> one{config, random_samples(config, {190, 2, 83, 1, 40}, 21), 5};

  index_t block_size() const { return config.block_size; }
  const MemorySample& sample(std::size_t i) { return one.memory()[i]; }
};

struct Key {
  std::size_t sample;
  index_t position;
  bool operator==(const Key&) const = default;
};
/// A block of the whole batch, or a kept context row of it.
inline std::vector<Key> all_blocks(Problem& p) {
  std::vector<Key> keys;
  for (std::size_t i = 0; i < p.one.blocks().size(); ++i)
    for (const index_t anchor : p.one.blocks()[i].anchors) keys.push_back({i, anchor});
  return keys;
}
inline std::vector<Key> all_context(Problem& p) {
  std::vector<Key> keys;
  for (std::size_t i = 0; i < p.one.blocks().size(); ++i)
    for (index_t row = 0; row < p.one.blocks()[i].context_rows(); ++row) keys.push_back({i, row});
  return keys;
}

/// Calls body(cpu, group, batch) on every rank of a layout, one rank at a time if it only looks.
template <class Body>
void on_ranks(Problem& p, SequenceLayout layout, Body&& body) {
  CAPTURE(layout.ulysses);
  CAPTURE(layout.ring);
  ThreadCommunicator::run(int(layout.ranks()), [&](ThreadCommunicator world) {
    B cpu;
    Group group(std::move(world), layout);
    const auto batch = shard(cpu, group, p.one.samples(), p.one.blocks(), *p.config.mask_token);
    body(cpu, group, batch);
  });
}

/// Tensors of all ranks by name, put together in the order of the batch's rows.
class Whole {
 public:
  /// Rows of a rank's blocks, or of its part of the context.
  void add_blocks(const std::string& name, const Group& group, index_t blocks, index_t block_size,
                  In<double, 2> own) {
    const Range range = group.layout().blocks(group.rank(), blocks);
    REQUIRE(own.shape[0] == range.size() * block_size);
    const Range rows{range.begin * block_size, range.end * block_size};
    put(name, {&rows, 1}, own);
  }
  void add_context(const std::string& name, const Group& group, index_t rows, In<double, 2> own) {
    put(name, group.layout().context_ranges(group.rank(), rows), own);
  }
  void add_sum(const std::string& name, In<double, 1> own) {
    const std::lock_guard lock(mutex_);
    Values& all = values_[name];
    all.resize(std::size_t(own.size()));
    for (index_t i = 0; i < own.size(); ++i) all[std::size_t(i)] += own(i);
  }
  const std::map<std::string, Values>& values() const { return values_; }

 private:
  void put(const std::string& name, std::span<const Range> rows, In<double, 2> own) {
    const std::lock_guard lock(mutex_);
    Values& all = values_[name];
    const double* from = own.data;
    for (const Range& range : rows) {
      const auto end = std::size_t(range.end * own.shape[1]);
      if (all.size() < end) all.resize(end, std::nan(""));
      std::copy_n(from, range.size() * own.shape[1], all.data() + range.begin * own.shape[1]);
      from += range.size() * own.shape[1];
    }
    CHECK(from == own.data + own.size());
  }

  std::mutex mutex_;
  std::map<std::string, Values> values_;
};

/// Largest difference over largest entry.
inline double difference(const Values& a, const Values& b) {
  if (a.size() != b.size()) return INFINITY;
  double top = 0, worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    top = std::max(top, std::abs(a[i]));
    worst = std::abs(a[i] - b[i]) <= worst ? worst : std::abs(a[i] - b[i]);
  }
  return worst / std::max(top, 1e-300);
}

inline void check_equal(const Whole& many, const Whole& one) {
  CHECK(many.values().size() == one.values().size());
  for (const auto& [name, values] : one.values()) {
    CAPTURE(name);
    REQUIRE(many.values().count(name) == 1);
    const double off = difference(values, many.values().at(name));
    CHECK(off <= 1e-12);
  }
}

/// Columns of some heads of all rows.
inline Values heads_of(const Values& rows, index_t heads, Range some, index_t dim) {
  Values out;
  for (index_t row = 0; row < index_t(rows.size()) / (heads * dim); ++row)
    for (index_t c = some.begin * dim; c < some.end * dim; ++c)
      out.push_back(rows[std::size_t(row * heads * dim + c)]);
  return out;
}
/// Some rows of a matrix, in their order.
inline Values rows_of(const Values& all, index_t width, const std::vector<index_t>& rows) {
  Values out;
  for (const index_t row : rows)
    out.insert(out.end(), all.begin() + row * width, all.begin() + (row + 1) * width);
  return out;
}
inline Values host(View<double, 3> v) { return {v.data, v.data + v.size()}; }

}  // namespace parallel_stages
