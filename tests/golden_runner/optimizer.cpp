#include <string>
#include <vector>

#include "dflash/cpu.hpp"
#include "dflash/cpu/convert.hpp"
#include "dflash/train/schedule.hpp"
#include "golden_runner/optimizer_case.hpp"

namespace golden {

void run_optimizer(const GoldenCase& test, Report& report) {
  dflash::CpuBackend<float> single;
  replay<float>(single, test, trajectory_fp32, report);
  replay<dflash::bfloat16>(single, test, trajectory_bf16, report);
  replay<float>(single, test, trajectory_torch32, report);
  dflash::CpuBackend<double> both;
  replay<double>(both, test, trajectory_torch64, report);
}

void run_schedule(const GoldenCase& test, Report& report) {
  for (const auto& table : test.settings.at("tables")) {
    const auto kind = table.at("kind").get<std::string>();
    const auto total = table.at("total_steps").get<index_t>();
    dflash::Schedule schedule;
    schedule.kind = dflash::Schedule::kinds.named(kind);
    schedule.peak = table.at("base_lr");
    schedule.total = total;
    schedule.warmup = dflash::Schedule::warmup_steps(table.at("warmup_ratio"), total);
    const std::string what = kind + " of " + std::to_string(total) + " steps";
    report.expect(schedule.warmup == table.at("warmup_steps").get<index_t>(), what + ": warm-up");
    std::vector<double> rates;
    for (const auto& step : table.at("step")) rates.push_back(schedule(step.get<index_t>()));
    const char* curve = kind == "cosine" ? "lr_plain_cosine" : "lr";
    report.near(what, rates, table.at(curve).get<std::vector<double>>(), 1e-12);
  }
}

}  // namespace golden
