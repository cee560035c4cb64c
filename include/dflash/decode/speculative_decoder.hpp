#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "dflash/core/host_copy.hpp"
#include "dflash/decode/draft_decoder.hpp"
#include "dflash/decode/sampling.hpp"
#include "dflash/model/target_model.hpp"

namespace dflash {

/// How an answer is decoded.
struct DecodeOptions {
  index_t max_new_tokens = 128;
  std::vector<std::int32_t> stop_tokens = {};
  double temperature = 0;              // of the target; 0: greedy
  double draft_temperature = 0;        // of the proposals when sampling
  std::uint64_t seed = 0, answer = 0;  // of sampling: the same pair gives the same tokens
};

/// One draft-verify cycle.
struct DecodeCycle {
  std::vector<std::int32_t> draft_tokens;   // (K - 1), proposed
  std::vector<std::int32_t> target_tokens;  // (K), the target's choice after each; greedy only
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
/// of plain greedy decoding, token by token; sampled output has the target's distribution. If the
/// target lies on several ranks, all of them decode the same prompts, with whole drafts.
template <class Model, Communicator C = SingleProcess>
class SpeculativeDecoder {
 public:
  using B = typename Model::B;
  using T = typename B::value_type;
  using Sum = typename B::accumulator_type;

  SpeculativeDecoder(const TargetModel<B, C>& target, const Model& model,
                     const Parameters<B>& weights, std::int32_t mask_token,
                     SlidingLayers sliding = SlidingLayers::as_trained)
      : target_(&target),
        layers_(model.config().target_layer_ids),
        mask_token_(mask_token),
        draft_(model, weights, sliding) {
    expects(mask_token >= 0 && mask_token < target.config().vocabulary,
            "the mask token has a row in the embedding");
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
    stopped_ = false;
    const SamplingRandom random(options.seed, options.answer);
    index_t start = index_t(prompt.size());
    const index_t limit = start + options.max_new_tokens;
    auto seen = target_->forward(prompt, cache, {.layers = layers_, .logits = Logits::last});
    draft_.extend(seen.features.view());
    std::int32_t next = options.temperature == 0 ? largest(seen.logits.view())[0]
                                                 : sample(host(seen.logits.view()).view(),
                                                          options.temperature, random.token(start));
    push(answer, next, false, options);

    while (start < limit) {
      DecodeCycle cycle;
      const auto draft_logits = propose(next, start + 1, options, random, cycle);
      std::vector<std::int32_t> tokens{next};
      tokens.insert(tokens.end(), cycle.draft_tokens.begin(), cycle.draft_tokens.end());
      seen = target_->forward(tokens, cache, {.layers = layers_, .logits = Logits::all});
      if (options.temperature == 0) {
        cycle.target_tokens = largest(seen.logits.view());
        const auto differ = std::mismatch(cycle.draft_tokens.begin(), cycle.draft_tokens.end(),
                                          cycle.target_tokens.begin());
        cycle.accepted = differ.first - cycle.draft_tokens.begin();
        next = *differ.second;
      } else {
        const HostRows target_rows = host(seen.logits.view()),
                       draft_rows = host(draft_logits.view());
        const Verdict verdict =
            verify<Sum>(cycle.draft_tokens, draft_rows.view(), options.draft_temperature,
                        target_rows.view(), options.temperature, random, start + 1);
        cycle.accepted = verdict.accepted;
        next = verdict.next;
      }
      for (index_t i = 0; i < cycle.accepted; ++i)
        push(answer, cycle.draft_tokens[std::size_t(i)], true, options);
      push(answer, next, false, options);
      start += cycle.accepted + 1;
      cache.truncate(start);
      draft_.extend(In<T, 2>(seen.features.view()).rows({0, cycle.accepted + 1}));
      answer.cycles.push_back(std::move(cycle));
      if (stopped_) break;
    }
    return answer;
  }

 private:
  using Matrix = Tensor<B, T, 2>;
  struct HostRows {
    std::vector<Sum> values;
    index_t rows, width;
    View<const Sum, 2> view() const { return {values.data(), {rows, width}}; }
  };

  /// Fills the cycle's draft tokens, the first of which stands at `position`. Returns their logits.
  Matrix propose(std::int32_t anchor_token, index_t position, const DecodeOptions& options,
                 const SamplingRandom& random, DecodeCycle& cycle) {
    const index_t k = draft_.block_size();
    std::vector<std::int32_t> tokens(std::size_t(k), mask_token_);
    tokens[0] = anchor_token;
    const auto hidden = draft_.block(target_->embed(tokens));
    Matrix logits = target_->head_logits(hidden.view().rows({1, k}));
    if (options.temperature == 0 || options.draft_temperature == 0) {
      cycle.draft_tokens = largest(logits.view());
    } else {
      const HostRows rows = host(logits.view());
      for (index_t i = 0; i + 1 < k; ++i)
        cycle.draft_tokens.push_back(sample(rows.view().rows({i, i + 1}), options.draft_temperature,
                                            random.proposal(position + i)));
    }
    return logits;
  }

  static std::int32_t sample(View<const Sum, 2> row, double temperature, double u) {
    std::vector<double> p;
    probabilities(std::span<const Sum>(row.data, std::size_t(row.shape[1])), temperature, p);
    return draw(p, u);
  }
  std::vector<std::int32_t> largest(In<T, 2> logits) const {
    Tensor<B, std::int32_t, 1> best(target_->backend(), {logits.shape[0]});
    argmax_rows(target_->backend(), logits, best.view());
    return downloaded(target_->backend(), best.view());
  }
  HostRows host(In<T, 2> v) const {
    return {host_copy(target_->backend(), v), v.shape[0], v.shape[1]};
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

  const TargetModel<B, C>* target_;
  std::vector<index_t> layers_;
  std::int32_t mask_token_;
  DraftDecoder<Model> draft_;
  bool stopped_ = false;
};

}  // namespace dflash
