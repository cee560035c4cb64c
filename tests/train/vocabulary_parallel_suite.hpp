#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "dflash/core/random.hpp"
#include "dflash/cpu.hpp"
#include "dflash/train/vocabulary_parallel_loss.hpp"

/// What the loss under a split head must be on any communicator. Each check is called by all ranks
/// of a world; every rank computes what the whole head gives for its blocks, and compares.
namespace vocabulary_parallel_suite {

using namespace dflash;

struct Problem {
  index_t width = 6, vocabulary = 50, block_size = 4;
  std::vector<index_t> blocks;  // of each rank of the group
  double supervised = 0.7;      // share of slots
  bool whole_numbers = false;   // logits then tie
  double scale = 1;             // of the hidden states

  /// What a rank brings.
  struct Rows {
    std::vector<double> hidden;
    std::vector<std::int32_t> labels;
    std::vector<float> weights;
    index_t slots() const { return index_t(labels.size()); }
  };

  Rows rows(index_t rank) const {
    const Random random(7, std::uint64_t(rank));
    Rows r;
    for (index_t i = 0; i < blocks[std::size_t(rank)] * block_size; ++i) {
      const auto at = std::uint64_t(1000 * i);
      for (index_t c = 0; c < width; ++c)
        r.hidden.push_back(scale * value(random, at + std::uint64_t(c)));
      r.labels.push_back(std::int32_t(random.integer(at + 900) % std::uint64_t(vocabulary)));
      const bool learns = i % block_size > 0 && random.uniform(at + 901) < supervised;
      r.weights.push_back(learns ? 1.0f : 0.0f);
    }
    return r;
  }
  std::vector<double> head() const {
    const Random random(8);
    std::vector<double> all;
    for (index_t i = 0; i < vocabulary * width; ++i) all.push_back(value(random, std::uint64_t(i)));
    return all;
  }

 private:
  double value(const Random& random, std::uint64_t at) const {
    return whole_numbers ? double(random.integer(at) % 3) - 1 : random.normal(at);
  }
};

/// Supervised rows of each chunk of a rank: whole blocks, as many as fit.
inline std::vector<index_t> chunk_rows(const Problem& problem, index_t rank, index_t limit) {
  const auto weights = problem.rows(rank).weights;
  std::vector<index_t> chunks;
  index_t chunk = 0;
  for (std::size_t at = 0; at < weights.size(); at += std::size_t(problem.block_size)) {
    const auto begin = weights.begin() + index_t(at);
    const index_t rows = std::count(begin, begin + problem.block_size, 1.0f);
    if (chunk > 0 && chunk + rows > limit) {
      chunks.push_back(chunk);
      chunk = 0;
    }
    chunk += rows;
  }
  if (chunk > 0) chunks.push_back(chunk);
  return chunks;
}

template <class T, class C>
void check_loss(C& world, index_t degree, const Problem& problem, const LossOptions& options) {
  using B = CpuBackend<T>;
  B cpu;
  TensorParallelGroup<C> group(world, degree);
  const auto rows = problem.rows(group.rank());
  const auto head = problem.head();
  const std::vector<T> all(head.begin(), head.end()),
      hidden(rows.hidden.begin(), rows.hidden.end());
  std::vector<T> expected_gradient(hidden.size(), T(7)), gradient(hidden.size(), T(7));
  const auto matrix = [&](auto& values) {
    using U = std::remove_reference_t<decltype(*values.data())>;
    return View<U, 2>{values.data(), {rows.slots(), problem.width}};
  };
  const View<const T, 2> whole{all.data(), {problem.vocabulary, problem.width}};
  const auto expected =
      draft_loss(cpu, whole, matrix(hidden), rows.labels, rows.weights, problem.block_size,
                 index_t(2), options, matrix(expected_gradient));

  // Rows of other ranks are nowhere near.
  const Range own = group.share().of(problem.vocabulary);
  const std::vector<T> slice(all.begin() + own.begin * problem.width,
                             all.begin() + own.end * problem.width);
  const Traffic before = group.communicator().traffic();
  const auto actual = vocabulary_parallel_draft_loss(
      cpu, group,
      VocabularySlice<T>{
          {slice.data(), {own.size(), problem.width}}, own.begin, problem.vocabulary},
      matrix(hidden), rows.labels, rows.weights, problem.block_size, 2, options, matrix(gradient));

  const double tolerance = std::is_same_v<T, double> ? 1e-12 : 1e-5;
  CHECK(std::abs(actual.numerator - expected.numerator) <=
        tolerance * std::abs(expected.numerator));
  CHECK(actual.denominator == expected.denominator);
  CHECK(actual.metrics.supervised == expected.metrics.supervised);
  CHECK(actual.metrics.correct == expected.metrics.correct);
  CHECK(actual.metrics.accepted == expected.metrics.accepted);
  double top = 0, worst = 0;
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    top = std::max(top, std::abs(double(expected_gradient[i])));
    worst = std::max(worst, std::abs(double(gradient[i]) - double(expected_gradient[i])));
    REQUIRE(std::isfinite(gradient[i]));
  }
  CHECK(worst <= tolerance * top);
  if (degree == 1) CHECK(gradient == expected_gradient);

  std::vector<std::vector<index_t>> brought;
  const index_t limit = std::max<index_t>(1, options.rows_at_once<B>() / degree);
  for (index_t rank = 0; rank < degree; ++rank) brought.push_back(chunk_rows(problem, rank, limit));
  CHECK(group.communicator().traffic() - before ==
        vocabulary_parallel_loss_traffic(group.share(), problem.width, brought,
                                         NumberBytes::of<B>()));
}

}  // namespace vocabulary_parallel_suite
