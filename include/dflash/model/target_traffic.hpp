#pragma once

#include <algorithm>

#include "dflash/comm/collective_bytes.hpp"
#include "dflash/comm/traffic.hpp"
#include "dflash/model/decoder_layer.hpp"

namespace dflash {

/// What one rank of a target's tensor-parallel group sends in a forward of `rows` rows through
/// `layers` layers that hands back the logits of `logit_rows` rows: two sums a layer (the second in
/// pieces if there are very many rows), of the last layer for those rows alone, one of the
/// embedding, and the logits.
inline Traffic target_traffic(const TargetConfig& config, Share rank, index_t rows, index_t layers,
                              index_t logit_rows, NumberBytes bytes) {
  Traffic traffic;
  if (rank.ranks == 1) return traffic;
  const auto sum = [&](index_t n) {
    traffic.all_reduce_sum.add(all_reduce_bytes(rank, n * config.hidden, bytes.sum));
  };
  sum(rows);
  for (index_t layer = 0; layer < layers; ++layer) {
    const index_t n = layer + 1 == layers && logit_rows > 0 ? logit_rows : rows;
    constexpr index_t step = decoder_transform_rows;
    sum(n);
    for (index_t begin = 0; begin < n; begin += step) sum(std::min(step, n - begin));
  }
  if (logit_rows > 0)
    traffic.all_gather.add(
        all_gather_bytes(rank, logit_rows * rank.of(config.vocabulary).size(), bytes.value));
  return traffic;
}

}  // namespace dflash
