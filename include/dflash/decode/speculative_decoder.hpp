#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "dflash/decode/draft_decoder.hpp"
#include "dflash/decode/sampling.hpp"
#include "dflash/model/target_model.hpp"

namespace dflash {

/// How an answer is decoded.
struct DecodeOptions {
  index_t max_new_tokens = 128;
  std::vector<std::int32_t> stop_tokens;
  double temperature = 0;  // 0: greedy
  std::uint64_t seed = 0;  // of sampling
};

/// One draft-verify cycle.
struct DecodeCycle {
  std::vector<std::int32_t> draft_tokens;   // (K - 1), proposed
  std::vector<std::int32_t> target_tokens;  // (accepted + 1), what the target says after each
  index_t accepted = 0;                     // leading draft tokens that the target accepts
};

/// What speculative decoding gives: the answer, and how it came about. The last cycle may run past
/// the end of the answer; it is recorded whole.
struct SpeculativeAnswer {
  std::vector<std::int32_t> tokens;  // new ones, at most max_new_tokens, up to the first stop token
  std::vector<bool> drafted;         // per token: an accepted proposal of the draft
  std::vector<DecodeCycle> cycles;
};

/// Speculative decoding of a target with a DFlash draft (arXiv:2602.06036). Greedy output is that
/// of plain greedy decoding, token by token; sampled output has the target's distribution.
template <class Model>
class SpeculativeDecoder {
 public:
  using B = typename Model::B;
  using T = typename B::value_type;

  SpeculativeDecoder(const TargetModel<B>& target, const Model& model, const Parameters<B>& weights,
                     std::int32_t mask_token, SlidingLayers sliding = SlidingLayers::as_trained)
      : target_(&target),
        layers_(model.config().target_layer_ids),
        head_(freeze(target.backend(), target.lm_head())),
        draft_(model, weights, target.embedding(), mask_token, sliding) {
    if (model.config().shape.hidden != target.config().hidden)
      throw Error("the draft's hidden_size " + std::to_string(model.config().shape.hidden) +
                  " is not the target's " + std::to_string(target.config().hidden));
    check_target_layer_ids(layers_, target.config().layers, "the draft");
  }

  SpeculativeAnswer decode(std::span<const std::int32_t> prompt, const DecodeOptions& options) {
    if (prompt.empty()) throw Error("the prompt has no tokens");
    SpeculativeAnswer answer;
    if (options.max_new_tokens <= 0) return answer;
    KeyValueCache<B> cache = target_->cache();
    draft_.clear();
    const TokenChooser choose(options.temperature, options.seed);
    auto seen = target_->forward(prompt, cache, {.layers = layers_, .logits = Logits::last});
    draft_.extend(seen.features.view());
    std::int32_t next = choose(target_->backend(), seen.logits.view(), index_t(prompt.size()))[0];
    push(answer, next, false, options);

    const index_t limit = index_t(prompt.size()) + options.max_new_tokens;
    index_t start = index_t(prompt.size());
    while (start < limit) {
      DecodeCycle cycle;
      cycle.draft_tokens = propose(next);
      std::vector<std::int32_t> tokens{next};
      tokens.insert(tokens.end(), cycle.draft_tokens.begin(), cycle.draft_tokens.end());
      seen = target_->forward(tokens, cache, {.layers = layers_, .logits = Logits::all});
      // A greedy proposal has all the draft's probability: taking it where the target's own draw
      // agrees, and that draw where it does not, is the lossless rejection rule.
      const auto drawn = choose(target_->backend(), seen.logits.view(), start + 1);
      while (cycle.accepted < index_t(cycle.draft_tokens.size()) &&
             cycle.draft_tokens[std::size_t(cycle.accepted)] == drawn[std::size_t(cycle.accepted)])
        ++cycle.accepted;
      const index_t kept = cycle.accepted + 1;
      cycle.target_tokens.assign(drawn.begin(), drawn.end());
      for (index_t i = 0; i < kept; ++i)
        push(answer, drawn[std::size_t(i)], i < cycle.accepted, options);
      next = drawn[std::size_t(cycle.accepted)];
      start += kept;
      cache.truncate(start);
      draft_.extend(In<T, 2>(seen.features.view()).rows({0, kept}));
      answer.cycles.push_back(std::move(cycle));
      if (stopped_) break;
    }
    stopped_ = false;
    return answer;
  }

 private:
  std::vector<std::int32_t> propose(std::int32_t anchor_token) {
    B& backend = target_->backend();
    const auto hidden = draft_.block(anchor_token);
    const index_t k = draft_.block_size();
    Tensor<B, T, 2> logits(backend, {k - 1, target_->config().vocabulary});
    linear(backend, hidden.view().rows({1, k}), head_, logits.view());
    Tensor<B, std::int32_t, 1> best(backend, {k - 1});
    argmax_rows(backend, logits.view(), best.view());
    std::vector<std::int32_t> tokens(std::size_t(k - 1));
    backend.download(best.view().data, tokens.data(), k - 1);
    return tokens;
  }

  /// Adds a token unless the answer has ended.
  void push(SpeculativeAnswer& answer, std::int32_t token, bool drafted,
            const DecodeOptions& options) {
    if (stopped_) return;
    if (index_t(answer.tokens.size()) < options.max_new_tokens) {
      answer.tokens.push_back(token);
      answer.drafted.push_back(drafted);
    }
    const auto& stops = options.stop_tokens;
    stopped_ = std::find(stops.begin(), stops.end(), token) != stops.end();
  }

  const TargetModel<B>* target_;
  std::vector<index_t> layers_;
  typename B::FrozenMatrix head_;
  DraftDecoder<Model> draft_;
  bool stopped_ = false;
};

}  // namespace dflash
