#pragma once

// Speculative decoding on any backend, greedy: every proposal, every answer of the target, every
// acceptance.

#include <algorithm>
#include <string>
#include <vector>

#include "dflash/decode/greedy.hpp"
#include "dflash/decode/speculative_decoder.hpp"
#include "dflash/model/read_parameters.hpp"
#include "golden_runner/golden.hpp"

namespace golden {

using namespace dflash;

/// By how much the logits of the tokens from `first` on lie below the best of their place, at most.
template <Backend B>
double regret(const TargetModel<B>& target, const std::vector<std::int32_t>& tokens,
              std::size_t first) {
  const auto output = target.prefill(tokens, std::vector<index_t>{0, index_t(tokens.size())},
                                     {.layers = {}, .logits = Logits::all});
  const auto logits = host_copy(target.backend(), output.logits.view());
  const index_t words = target.config().vocabulary;
  double worst = 0;
  for (std::size_t i = first; i < tokens.size(); ++i) {
    const auto row = logits.begin() + index_t(i - 1) * words;
    worst = std::max(worst, double(*std::max_element(row, row + words)) - double(row[tokens[i]]));
  }
  return worst;
}

/// Runs what the reference ran. Where some two best logits of a run are nearer to each other than
/// `margin`, rounding decides: of its tokens each must be within `margin` of the best.
template <Backend B>
void generate_case(B& backend, const GoldenCase& c, Report& report, double margin = 0) {
  const auto folder = c.folder / c.settings.at("draft_dir").get<std::string>();
  const TargetModel<B> target(backend, c.folder / c.settings.at("target_dir").get<std::string>());
  const DraftConfig config = DraftConfig::read(folder);
  const auto weights = read_parameters(backend, config, folder);
  const LocalAttention attention(backend);
  const DFlashBlock block(attention, config.shape);
  const DraftModel model(block, config);
  // The reference's decoders run sliding layers as full ones.
  SpeculativeDecoder decoder(target, model, weights, *config.mask_token,
                             SlidingLayers::as_published);

  for (const auto& run : c.settings.at("runs")) {
    const std::string at = c.prefix_of(run.at("index"), "prompt");
    const auto prompt = c.read<std::int32_t>(at + "prompt");
    const double off = regret(target, c.read<std::int32_t>(at + "greedy"), prompt.size());
    report.expect(off <= margin, at + "greedy lies " + std::to_string(off) + " below the best");
    if (run.at("min_top2_margin").get<double>() < margin) continue;
    DecodeOptions options{.max_new_tokens = run.at("max_new_tokens")};
    if (run.contains("stop_token_ids") && run["stop_token_ids"].is_array())
      options.stop_tokens = run["stop_token_ids"].get<std::vector<std::int32_t>>();
    const SpeculativeAnswer answer = decoder.decode(prompt, options);

    std::vector<index_t> accept;
    std::vector<std::int32_t> draft_tokens, target_tokens;
    for (const DecodeCycle& cycle : answer.cycles) {
      accept.push_back(cycle.accepted + 1);
      draft_tokens.insert(draft_tokens.end(), cycle.draft_tokens.begin(), cycle.draft_tokens.end());
      target_tokens.insert(target_tokens.end(), cycle.target_tokens.begin(),
                           cycle.target_tokens.end());
    }
    report.equal(at + "accept", accept, c.read<index_t>(at + "accept"));
    report.equal(at + "draft_tokens", draft_tokens, c.read<std::int32_t>(at + "draft_tokens"));
    report.equal(at + "target_tokens", target_tokens, c.read<std::int32_t>(at + "target_tokens"));
    std::vector<std::int32_t> output = prompt;
    output.insert(output.end(), answer.tokens.begin(), answer.tokens.end());
    report.equal(at + "output", output, c.read<std::int32_t>(at + "output"));

    // Plain decoding of the same length, stop tokens or not.
    auto plain = greedy(target, std::span(prompt), options.max_new_tokens, {});
    std::vector<std::int32_t> all = prompt;
    all.insert(all.end(), plain.begin(), plain.end());
    report.equal(at + "greedy", all, c.read<std::int32_t>(at + "greedy"));
    plain.resize(std::min(plain.size(), answer.tokens.size()));
    report.equal(at + "speculative is greedy", answer.tokens, plain);
  }
}

}  // namespace golden
