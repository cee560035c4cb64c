#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "dflash/cpu.hpp"

namespace examples {

/// Where a program computes: here, on the processor.
struct Device {
  using Backend = dflash::CpuBackend<float>;
  static constexpr const char* export_dtype = "f32";

  std::string name = "cpu", precision = "fp32";

  void add_to(CLI::App& app) {
    app.add_option("--device", name, "cpu; the programs of the preset cuda, *_gpu, run on cuda")
        ->check(CLI::IsMember({"cpu"}))
        ->capture_default_str();
    app.add_option("--precision", precision,
                   "of products with weights: fp32, bf16x3 (nearly as precise) or bf16")
        ->check(CLI::IsMember({"fp32", "bf16x3", "bf16"}))
        ->capture_default_str();
  }

  Backend backend(int threads) const {
    return Backend(threads, dflash::cpu_precision_named(precision));
  }
};

}  // namespace examples
