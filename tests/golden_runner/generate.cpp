#include "dflash/cpu.hpp"
#include "golden_runner/generate_case.hpp"

namespace golden {

namespace {

/// What the reference does not compute: in every precision and storage of the weights, speculative
/// decoding gives the tokens of plain decoding.
void run_other_precisions(const GoldenCase& c, Report& report) {
  using B = CpuBackend<float>;
  const auto folder = c.folder / c.settings.at("draft_dir").get<std::string>();
  const DraftConfig config = DraftConfig::read(folder);
  for (CpuPrecision precision : cpu_precisions.values())
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
  CpuBackend<float> cpu;
  generate_case(cpu, c, report);
}

}  // namespace golden
