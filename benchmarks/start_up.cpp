// How long a training program takes from its start to the end of its first step, stage by stage, on
// a target that lies in the system's cache of files, beside a later step.
//   start_up --shape {tiny,smollm2,qwen3-0.6b} --threads N --precision {fp32,bf16x3,bf16}

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <random>

#include "training_loop.hpp"

using namespace dflash;
using namespace dflash_benchmark;

namespace {

/// The ends of the problem's target as a model folder, in bfloat16.
void write_target(const TrainingProblem& problem, const std::filesystem::path& folder) {
  const auto narrow = [](const StoredRows<const float>& m) {
    std::vector<bfloat16> values;
    m.visit([&](const auto& view) {
      for (index_t i = 0; i < view.size(); ++i) values.emplace_back(float(view.data[i]));
    });
    return values;
  };
  const auto embedding = narrow(problem.target.embedding()),
             head = narrow(problem.target.lm_head());
  const std::vector<index_t> shape{problem.target.embedding().shape[0],
                                   problem.target.embedding().shape[1]};
  std::vector<TensorData> tensors{
      {"model.embed_tokens.weight", DType::bf16, shape, embedding.data()}};
  if (!problem.shape.tied) tensors.push_back({"lm_head.weight", DType::bf16, shape, head.data()});
  write_json(folder / "config.json", {{"tie_word_embeddings", problem.shape.tied}});
  write_safetensors(folder / "model.safetensors", tensors);
}

void run(const std::string& shape, const std::string& precision, int threads,
         const std::filesystem::path& folder) {
  B backend(threads, cpu_precisions.named(precision));
  TrainingProblem problem(backend, shape_named(shape));
  write_target(problem, folder);

  double all = 0;
  const auto stage = [&](const char* name, auto&& work) {
    const double seconds = seconds_of(work);
    all += seconds;
    std::printf("%-34s %9.1f ms\n", name, seconds * 1e3);
  };
  std::printf("%s, %d threads, %s\n", shape.c_str(), threads, precision.c_str());
  stage("the target's embedding and head", [&] { FrozenTarget<B>(backend, folder); });
  stage("fresh weights", [&] { random_parameters(backend, problem.shape.config, 1); });
  std::optional<Trainer> trainer;
  stage("gradients and optimizer", [&] { trainer.emplace(backend, problem); });
  stage("first step", [&] { trainer->step(); });
  std::vector<Measured> later;
  for (int i = 0; i < 5; ++i) later.push_back(trainer->step());
  const double step = median(later, &Measured::step);
  std::printf("%-34s %9.1f ms, %.1f later steps\n", "until the first step is done", all * 1e3,
              all / step);
  std::printf("%-34s %9.1f ms\n", "a later step", step * 1e3);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times the start of a training program.", "start_up");
  std::string shape = "tiny", precision = "fp32";
  int threads = 1;
  app.add_option("--shape", shape, "tiny, smollm2 or qwen3-0.6b")->capture_default_str();
  app.add_option("--precision", precision, "of the products")
      ->check(CLI::IsMember(cpu_precisions.names()))
      ->capture_default_str();
  app.add_option("--threads", threads)->capture_default_str()->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  const auto folder = std::filesystem::temp_directory_path() /
                      ("start_up_" + std::to_string(std::random_device()()));
  std::filesystem::create_directory(folder);
  int status = 0;
  try {
    run(shape, precision, threads, folder);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "start_up: %s\n", error.what());
    status = 1;
  }
  std::filesystem::remove_all(folder);
  return status;
}
