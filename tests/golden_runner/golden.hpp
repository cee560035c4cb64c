#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/cpu/path.hpp"
#include "dflash/io/safetensors.hpp"

namespace golden {

/// One case: its JSON, and the tensors beside it, if any.
struct GoldenCase {
  std::filesystem::path folder;  // of the golden data
  std::string name, kind;
  nlohmann::json settings;
  std::shared_ptr<const dflash::SafetensorsFile> tensors;

  bool is_double() const { return name.ends_with("_f64"); }
  bool has(const std::string& tensor) const { return tensors && tensors->contains(tensor); }
  template <class T>
  std::vector<T> read(const std::string& tensor) const {
    dflash::expects(tensors != nullptr, "the case has no tensors");
    return tensors->read<T>(tensor);
  }
  /// The prefix "7." or "07." under which the tensors of item 7 lie; `tensor` is one of them.
  std::string prefix_of(int index, const std::string& tensor) const {
    std::string prefix = std::to_string(index) + ".";
    while (!has(prefix + tensor) && prefix.size() < 8) prefix = "0" + prefix;
    return prefix;
  }
  std::vector<dflash::index_t> shape(const std::string& tensor) const {
    return tensors->at(tensor).shape;
  }
};

/// How a step's products are computed.
struct Way {
  dflash::CpuPath path;
  dflash::CpuPrecision precision;
};

/// The ways in which cases of `kind` run, on this machine or on others.
std::vector<Way> ways_of(const std::string& kind);

/// Collects what a case compares. A case that compares nothing has failed.
class Report {
 public:
  void expect(bool ok, const std::string& what) {
    ++comparisons_;
    if (!ok) fail(what);
  }

  /// The largest |actual - expected| may be `tolerance` times the largest |expected| (or `floor`,
  /// if that is larger).
  template <class T, class U>
  void near(const std::string& what, const std::vector<T>& actual, const std::vector<U>& expected,
            double tolerance, double floor = 1e-30) {
    ++comparisons_;
    if (actual.size() != expected.size()) return fail(what + ": sizes differ");
    double top = floor, worst = 0;
    bool finite = true;
    for (std::size_t i = 0; i < actual.size(); ++i) {
      top = std::max(top, std::abs(double(expected[i])));
      const double difference = std::abs(double(actual[i]) - double(expected[i]));
      finite = finite && std::isfinite(difference);
      worst = std::max(worst, difference);
    }
    if (!finite) return fail(what + ": not finite");
    if (worst > tolerance * top)
      fail(what + ": off by " + std::to_string(worst / top / tolerance) + " times the tolerance");
  }
  void near(const std::string& what, double actual, double expected, double tolerance) {
    near(what, std::vector<double>{actual}, std::vector<double>{expected}, tolerance);
  }

  template <class Actual, class U>
  void equal(const std::string& what, const Actual& actual, const std::vector<U>& expected) {
    ++comparisons_;
    const bool same =
        actual.size() == expected.size() &&
        std::equal(actual.begin(), actual.end(), expected.begin(), [](const auto& a, const U& b) {
          return a == std::remove_cvref_t<decltype(a)>(b);
        });
    if (!same) fail(what + ": differ");
  }

  /// Names a part of the case that this build cannot check.
  void skip(const std::string& part) { skipped_.push_back(part); }

  int comparisons() const { return comparisons_; }
  const std::vector<std::string>& failures() const { return failures_; }
  const std::vector<std::string>& skipped() const { return skipped_; }

 private:
  void fail(const std::string& what) { failures_.push_back(what); }

  int comparisons_ = 0;
  std::vector<std::string> failures_, skipped_;
};

void run_anchors(const GoldenCase&, Report&);
void run_chat(const std::filesystem::path& folder, Report&);
void run_collator(const GoldenCase&, Report&);
void run_draft_forward(const GoldenCase&, Report&);
void run_features(const GoldenCase&, Report&);
void run_generate(const GoldenCase&, Report&);
void run_gguf(const GoldenCase&, Report&);
void run_layer_ids(const GoldenCase&, Report&);
void run_mask(const GoldenCase&, Report&);
void run_optimizer(const GoldenCase&, Report&);
void run_prepare_filter(const GoldenCase&, Report&);
void run_replay(const GoldenCase&, Report&);
void run_schedule(const GoldenCase&, Report&);
void run_sp_scatter(const GoldenCase&, Report&);
void run_stored_sample(const GoldenCase&, Report&);
void run_target(const GoldenCase&, Report&);
void run_tokenizer(const std::filesystem::path& folder, Report&);
void run_train_step(const GoldenCase&, Way, Report&);
void run_train_step_bf16(const GoldenCase&, Way, Report&);
void run_usp_step(const GoldenCase&, Report&);

}  // namespace golden
