#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "dflash/model/target_model.hpp"

namespace dflash {

/// Plain decoding: the target's most likely token, again and again. The new tokens; the last one is
/// a stop token, or the answer is max_new_tokens long.
template <Backend B, Communicator C>
std::vector<std::int32_t> greedy(const TargetModel<B, C>& target,
                                 std::span<const std::int32_t> prompt, index_t max_new_tokens,
                                 std::span<const std::int32_t> stop_tokens) {
  B& backend = target.backend();
  KeyValueCache<B> cache = target.cache();
  Tensor<B, std::int32_t, 1> best(backend, {1});
  std::vector<std::int32_t> answer;
  std::span<const std::int32_t> next = prompt;
  while (index_t(answer.size()) < max_new_tokens) {
    const auto output = target.forward(next, cache, {.layers = {}, .logits = Logits::last});
    argmax_rows(backend, output.logits.view(), best.view());
    std::int32_t token = 0;
    backend.download(best.view().data, &token, 1);
    answer.push_back(token);
    if (std::find(stop_tokens.begin(), stop_tokens.end(), token) != stop_tokens.end()) break;
    next = std::span(answer).last(1);
  }
  return answer;
}

}  // namespace dflash
