#include "dflash/cpu.hpp"
#include "golden_runner/draft_case.hpp"

namespace golden {
namespace {

template <class T>
CpuBackend<T> backend_of(Way way) {
  return CpuBackend<T>(1, way.path, way.precision);
}

StepLimit limit_of(Way way) {
  if (way.precision == CpuPrecision::fp32) return {1e-5, 3e-5};
  return {.value = 1e-4,
          .gradient = 1e-4,
          .narrow = false,
          .of_bf16_run = way.precision == CpuPrecision::bf16 ? 1.0 : 0.0};
}

constexpr StepLimit limit_of_double{1e-12, 1e-9};

}  // namespace

void run_draft_forward(const GoldenCase& c, Report& report) {
  if (c.is_double()) {
    CpuBackend<double> backend;
    forward_case(backend, c, report, 1e-12);
  } else {
    CpuBackend<float> backend;
    forward_case(backend, c, report, 1e-5);
  }
}

std::vector<Way> ways_of(const std::string& kind) {
  // Paths beyond avx512 have no products of their own in fp32.
  std::vector<Way> ways;
  for (CpuPath path : all_cpu_paths.values())
    for (CpuPrecision precision : cpu_precisions.values()) {
      const bool own = precision != CpuPrecision::fp32 || path <= CpuPath::avx512,
                 bounds = precision != CpuPrecision::bf16 || kind == "train_step_bf16";
      if (own && bounds) ways.push_back({path, precision});
    }
  return ways;
}

void run_train_step(const GoldenCase& c, Way way, Report& report) {
  if (c.is_double()) {
    auto backend = backend_of<double>(way);
    step_case(backend, c, report, "", limit_of_double);
  } else {
    auto backend = backend_of<float>(way);
    step_case(backend, c, report, "", limit_of(way));
  }
}

// Held against the float64 values of the same inputs.
void run_train_step_bf16(const GoldenCase& c, Way way, Report& report) {
  auto single = backend_of<float>(way);
  step_case(single, c, report, "ref.", limit_of(way));
  if (way.precision != CpuPrecision::fp32) return;
  auto both = backend_of<double>(way);
  step_case(both, c, report, "ref.", limit_of_double);
}

}  // namespace golden
