// Speculative decoding, greedy: every proposal, every answer of the target, every acceptance.

#include "dflash/cpu.hpp"
#include "dflash/decode/greedy.hpp"
#include "dflash/decode/speculative_decoder.hpp"
#include "dflash/model/read_parameters.hpp"
#include "golden.hpp"

using namespace dflash;

namespace golden {

namespace {

/// What the reference does not compute: in every precision and storage of the weights, speculative
/// decoding gives the tokens of plain decoding.
void run_other_precisions(const GoldenCase& c, Report& report) {
  using B = CpuBackend<float>;
  const auto folder = c.folder / c.settings.at("draft_dir").get<std::string>();
  const DraftConfig config = DraftConfig::read(folder);
  for (const CpuPrecision precision : all_cpu_precisions)
    for (const WeightStorage storage : {WeightStorage::as_stored, WeightStorage::int8}) {
      B cpu(1, precision);
      const TargetModel<B> target(cpu, c.folder / c.settings.at("target_dir").get<std::string>(),
                                  storage);
      const auto weights = read_parameters(cpu, config, folder);
      const LocalAttention attention(cpu);
      const DFlashBlock block(attention, config.shape);
      const DraftModel model(block, config);
      SpeculativeDecoder decoder(target, model, weights, *config.mask_token);
      for (const auto& run : c.settings.at("runs")) {
        const std::string at = c.prefix_of(run.at("index"), "prompt");
        const auto prompt = c.read<std::int32_t>(at + "prompt");
        const index_t most = run.at("max_new_tokens");
        report.equal(at + "speculative is greedy, " + std::string(name_of(precision)) +
                         (storage == WeightStorage::int8 ? ", int8" : ""),
                     decoder.decode(prompt, {.max_new_tokens = most}).tokens,
                     greedy(target, std::span(prompt), most, {}));
      }
    }
}

}  // namespace

void run_generate(const GoldenCase& c, Report& report) {
  run_other_precisions(c, report);
  using B = CpuBackend<float>;
  B cpu;
  const auto folder = c.folder / c.settings.at("draft_dir").get<std::string>();
  const TargetModel<B> target(cpu, c.folder / c.settings.at("target_dir").get<std::string>());
  const DraftConfig config = DraftConfig::read(folder);
  const auto weights = read_parameters(cpu, config, folder);
  const LocalAttention attention(cpu);
  const DFlashBlock block(attention, config.shape);
  const DraftModel model(block, config);
  // The reference's decoders run sliding layers as full ones.
  SpeculativeDecoder decoder(target, model, weights, *config.mask_token,
                             SlidingLayers::as_published);

  for (const auto& run : c.settings.at("runs")) {
    const std::string at = c.prefix_of(run.at("index"), "prompt");
    const auto prompt = c.read<std::int32_t>(at + "prompt");
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
