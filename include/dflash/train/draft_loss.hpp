#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

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

}  // namespace detail

/// The loss of the draft's output under the target's head, and `doutput` = d numerator / d hidden
/// (written). Only supervised rows reach the head, a chunk at a time: logits never exist whole.
/// `samples` is what D-PACE divides by. Error if a label lies outside the head's vocabulary.
///                          head (V, H)  hidden, doutput (N * K, H)  labels, weights (N * K)
template <Backend B>
LossResult draft_loss(B& backend, In<typename B::value_type, 2> head,
                      In<typename B::value_type, 2> hidden, std::span<const std::int32_t> labels,
                      std::span<const float> weights, index_t block_size, index_t samples,
                      const LossOptions& options, Out<typename B::value_type, 2> doutput) {
  using T = typename B::value_type;
  using A = typename B::accumulator_type;
  const index_t width = hidden.shape[1], slots = hidden.shape[0];
  expects(block_size >= 1 && slots % block_size == 0 && index_t(labels.size()) == slots &&
              index_t(weights.size()) == slots && doutput.shape[0] == slots &&
              doutput.shape[1] == width && head.shape[1] == width,
          "draft_loss: shapes differ");
  LossResult result(block_size);
  fill(backend, doutput, T(0));
  for (Range blocks; blocks.end < slots / block_size;) {
    blocks = detail::next_blocks(weights, block_size, blocks.end, options.chunk_rows);
    const auto first = std::size_t(blocks.begin * block_size),
               count = std::size_t(blocks.size() * block_size);
    std::vector<std::int32_t> row, label;  // of the supervised slots
    for (std::size_t i = first; i < first + count; ++i) {
      if (!(weights[i] > 0)) continue;
      if (labels[i] < 0 || labels[i] >= head.shape[0])
        throw Error("label " + std::to_string(labels[i]) + " of block " +
                    std::to_string(index_t(i) / block_size) + ", slot " +
                    std::to_string(index_t(i) % block_size) +
                    " is outside the head's vocabulary of " + std::to_string(head.shape[0]));
      row.push_back(std::int32_t(i));
      label.push_back(labels[i]);
    }
    const auto rows = index_t(row.size());
    if (rows == 0) continue;

    const auto rows_there = uploaded(backend, row.data(), rows);
    const auto labels_there = uploaded(backend, label.data(), rows);
    Tensor<B, T, 2> x(backend, {rows, width}), dx(backend, {rows, width});
    Tensor<B, A, 1> scale(backend, {rows});
    Tensor<B, std::uint8_t, 1> hits(backend, {rows});
    gather_rows(backend, hidden, rows_there.view(), x.view());
    linear_cross_entropy(backend, x.view(), head, labels_there.view(), scale.view(), hits.view(),
                         dx.view());
    std::vector<A> value(row.size());
    std::vector<std::uint8_t> hit(row.size());
    backend.download(scale.view().data, value.data(), rows);
    backend.download(hits.view().data, hit.data(), rows);

    std::vector<double> nll(count), factors(count);
    std::vector<std::uint8_t> correct(count);
    for (std::size_t r = 0; r < row.size(); ++r) {
      nll[std::size_t(row[r]) - first] = double(value[r]);
      correct[std::size_t(row[r]) - first] = hit[r];
    }
    result +=
        block_loss(weights.subspan(first, count), nll, correct, block_size, 0, options, factors);
    for (std::size_t r = 0; r < row.size(); ++r) value[r] = A(factors[std::size_t(row[r]) - first]);
    backend.upload(value.data(), scale.view().data, rows);
    scale_rows(backend, scale.view(), dx.view());
    scatter_rows(backend, dx.view(), rows_there.view(), doutput);
  }
  result.denominator = loss_denominator(weights, block_size, samples, options);
  return result;
}

}  // namespace dflash
