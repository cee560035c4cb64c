#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "dflash/cuda.cuh"

namespace examples {

/// Where a program computes: here, on the rank's GPU, with activations and weights in bfloat16,
/// sums and the optimizer's masters in float.
struct Device {
  using Backend = dflash::CudaBackend<dflash::bfloat16>;
  static constexpr const char* export_dtype = "bf16";

  std::string name = "cuda", precision = "bf16";

  void add_to(CLI::App& app) {
    app.add_option("--device", name, "cuda; the programs without _gpu run on cpu")
        ->check(CLI::IsMember({"cuda"}))
        ->capture_default_str();
    app.add_option("--precision", precision, "of products with weights")
        ->check(CLI::IsMember({"bf16"}))
        ->capture_default_str();
  }

  Backend backend(int /*threads*/) const { return Backend(); }
};

}  // namespace examples
