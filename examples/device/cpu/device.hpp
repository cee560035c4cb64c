#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <variant>

#include "dflash/cpu.hpp"
#include "dflash/model/vocabulary_parallel.hpp"
#include "flag_checks.hpp"

namespace examples {

/// Where a program computes: here, on the processor.
struct Device {
  using Backend = dflash::CpuBackend<float>;
  using Head = std::variant<dflash::VocabularySlice<float>>;
  static constexpr const char* export_dtype = "f32";
  /// Whether a row has the same bits however many are computed at once, so that speculative
  /// decoding gives the answers of plain decoding.
  static constexpr bool rows_keep_bits = true;
  static constexpr const char* threads_help = "of each rank; 0: the cores, shared out";

  std::string name = "cpu", precision = "fp32", head_precision;

  void add_to(CLI::App& app) {
    app.add_option("--device", name, "cpu; the programs of the preset cuda, *_gpu, run on cuda")
        ->check(CLI::IsMember({"cpu"}))
        ->capture_default_str();
    app.add_option("--precision", precision,
                   "of products with weights: fp32, bf16x3 (nearly as precise) or bf16")
        ->check(one_of(dflash::cpu_precisions))
        ->capture_default_str();
  }

  void add_head_to(CLI::App& app) {
    app.add_option(
           "--head-precision", head_precision,
           "of the loss's products with the target's head, on GPUs: bf16 or fp8; here it is "
           "that of --precision")
        ->check([](const std::string&) {
          return std::string(
              "on the cpu the head's products have the precision of --precision; fp8 takes a GPU "
              "and a program of the preset cuda, *_gpu");
        });
  }

  Backend backend(int threads) const {
    return Backend(threads, dflash::cpu_precisions.named(precision));
  }
  /// The target's head for the loss.
  Head head(Backend&, const dflash::VocabularySlice<float>& slice) const { return slice; }
  bool float8_head() const { return false; }
  bool products_round() const {
    return dflash::cpu_precisions.named(precision) == dflash::CpuPrecision::bf16;
  }
};

}  // namespace examples
