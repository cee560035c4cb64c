#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <variant>

#include "dflash/cuda.cuh"
#include "dflash/train/vocabulary_parallel_loss.hpp"

namespace examples {

/// Where a program computes: here, on the rank's GPU, with activations and weights in bfloat16,
/// sums and the optimizer's masters in float.
struct Device {
  using Backend = dflash::CudaBackend<dflash::bfloat16>;
  using Slice = dflash::VocabularySlice<dflash::bfloat16>;
  using Head = std::variant<Slice, dflash::PreparedSlice<dflash::Float8Head<dflash::bfloat16>>>;
  static constexpr const char* export_dtype = "bf16";
  static constexpr bool rows_keep_bits = false;  // cuBLASLt chooses by the number of rows
  static constexpr const char* threads_help = "of the programs without _gpu: no effect here";

  std::string name = "cuda", precision = "bf16", head_precision = "bf16";

  void add_to(CLI::App& app) {
    app.add_option("--device", name, "cuda; the programs without _gpu run on cpu")
        ->check(CLI::IsMember({"cuda"}))
        ->capture_default_str();
    app.add_option("--precision", precision, "of products with weights")
        ->check(CLI::IsMember({"bf16"}))
        ->capture_default_str();
  }

  void add_head_to(CLI::App& app) {
    app.add_option("--head-precision", head_precision,
                   "of the loss's products with the target's head: bf16 or fp8")
        ->check(CLI::IsMember({"bf16", "fp8"}))
        ->capture_default_str();
  }

  Backend backend(int /*threads*/) const { return Backend(); }
  /// The target's head for the loss. The slice's rows outlive it.
  Head head(Backend& backend, const Slice& slice) const {
    if (!float8_head()) return slice;
    return dflash::PreparedSlice<dflash::Float8Head<dflash::bfloat16>>{
        dflash::float8_head(backend, slice.rows), slice.first, slice.total};
  }
  bool float8_head() const { return head_precision == "fp8"; }
  bool products_round() const { return false; }  // what is in bfloat16 there is so everywhere
};

}  // namespace examples
