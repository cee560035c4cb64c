#include "dflash/cpu.hpp"
#include "golden_runner/target_case.hpp"

namespace golden {

void run_target(const GoldenCase& c, Report& report) {
  if (c.is_double()) {
    CpuBackend<double> backend;
    target_case(backend, c, report, 1e-12);
  } else {
    CpuBackend<float> backend;
    target_case(backend, c, report, 1e-5);
  }
}

void run_features(const GoldenCase& c, Report& report) {
  if (c.is_double()) {
    CpuBackend<double> backend;
    features_case(backend, c, report, 1e-12);
  } else {
    CpuBackend<float> backend;
    features_case(backend, c, report, 1e-5);
  }
}

}  // namespace golden
