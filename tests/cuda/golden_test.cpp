#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "dflash/cuda.cuh"
#include "dflash/io/json_file.hpp"
#include "golden_runner/draft_case.hpp"
#include "golden_runner/generate_case.hpp"
#include "golden_runner/optimizer_case.hpp"
#include "golden_runner/target_case.hpp"

namespace golden_test {

using namespace dflash;
using namespace golden;

/// The cases of a kind, in float32, in the folder that DFLASH_GOLDEN names or the repository's.
std::vector<GoldenCase> cases(const std::string& kind) {
  const char* const chosen = std::getenv("DFLASH_GOLDEN");
  const std::filesystem::path folder =
      chosen != nullptr && *chosen != '\0' ? chosen : DFLASH_GOLDEN_DEFAULT;
  std::vector<GoldenCase> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    auto path = entry.path();
    const std::string name = path.stem().string();
    if (path.extension() != ".json" || !name.starts_with(kind) || name.ends_with("_f64")) continue;
    auto settings = read_json(path);
    if (settings.value("kind", std::string()) != kind) continue;
    const auto tensors = std::make_shared<SafetensorsFile>(path.replace_extension(".safetensors"));
    found.push_back({folder, name, kind, std::move(settings), tensors});
  }
  REQUIRE(!found.empty());
  return found;
}

/// Runs every case of a kind.
template <class Run>
void check(const std::string& kind, Run run) {
  for (const GoldenCase& c : cases(kind)) {
    Report report;
    run(c, report);
    CHECK(report.comparisons() > 0);
    for (const std::string& failure : report.failures()) FAIL_CHECK(c.name << ": " << failure);
  }
}

/// A number of bfloat16 is rounded by up to 2^-9; a step chains some twenty such roundings forward
/// and as many again backward, 8 % if all went one way.
template <class T>
constexpr StepLimit limit =
    std::is_same_v<T, float> ? StepLimit{1e-5, 3e-5}
                             : StepLimit{.value = 2.5e-2, .gradient = 0x1p-4, .narrow = true};

/// A target has up to eight layers with ten roundings each; its rows are held to their own largest
/// number, and so are the logits that decide a token.
template <class T>
constexpr double target_limit = std::is_same_v<T, float> ? 1e-5 : 6e-2;
template <class T>
constexpr double token_margin = std::is_same_v<T, float> ? 0 : 0.5;

TEST_CASE_TEMPLATE("the draft's forward pass is the reference's", T, float, bfloat16) {
  CudaBackend<T> backend;
  check("draft_forward", [&](const GoldenCase& c, Report& report) {
    forward_case(backend, c, report, limit<T>.value);
  });
}

TEST_CASE_TEMPLATE("loss, metrics and gradients of a step are the reference's", T, float,
                   bfloat16) {
  CudaBackend<T> backend;
  check("train_step",
        [&](const GoldenCase& c, Report& report) { step_case(backend, c, report, "", limit<T>); });
}

// Other roundings fall out otherwise, tensor by tensor; none may be twice as far off.
TEST_CASE("a step in bfloat16 is about as close to float64 as the reference's own") {
  CudaBackend<bfloat16> backend;
  check("train_step_bf16", [&](const GoldenCase& c, Report& report) {
    step_case(backend, c, report, "ref.", {.value = 0, .gradient = 0, .of_bf16_run = 2});
  });
  CudaBackend<float> single;
  check("train_step_bf16", [&](const GoldenCase& c, Report& report) {
    step_case(single, c, report, "ref.", limit<float>);
  });
}

TEST_CASE("the optimizer's trajectories are the reference's") {
  CudaBackend<float> single;
  CudaBackend<bfloat16> narrow;
  check("optimizer", [&](const GoldenCase& c, Report& report) {
    replay<float>(single, c, trajectory_fp32, report);
    replay<float>(single, c, trajectory_torch32, report);
    replay<bfloat16>(narrow, c, trajectory_bf16, report);
  });
}

TEST_CASE_TEMPLATE("the target's hidden states and logits are the reference's", T, float,
                   bfloat16) {
  CudaBackend<T> backend;
  check("target", [&](const GoldenCase& c, Report& report) {
    target_case(backend, c, report, target_limit<T>);
  });
}

TEST_CASE_TEMPLATE("the features that a draft learns from are the reference's", T, float,
                   bfloat16) {
  CudaBackend<T> backend;
  check("features", [&](const GoldenCase& c, Report& report) {
    features_case(backend, c, report, target_limit<T>);
  });
}

TEST_CASE_TEMPLATE("speculative decoding is the reference's, token by token", T, float, bfloat16) {
  CudaBackend<T> backend;
  check("generate", [&](const GoldenCase& c, Report& report) {
    generate_case(backend, c, report, token_margin<T>);
  });
}

}  // namespace golden_test
