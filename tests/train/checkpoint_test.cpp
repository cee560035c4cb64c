#include "dflash/train/checkpoint.hpp"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>

#include "dflash/core/bfloat16.hpp"
#include "dflash/cpu.hpp"
#include "dflash/cpu/convert.hpp"
#include "train/temporary_folder.hpp"

namespace checkpoint_test {

using namespace dflash;
namespace fs = std::filesystem;

const nlohmann::json config{{"model_type", "qwen3"}, {"hidden_size", 4}};
const nlohmann::json options{{"seed", 42}, {"learning_rate", 6e-4}};

nlohmann::json state_of(index_t step) { return {{"step", step}, {"options", options}}; }

/// A small run: weights, their optimizer, and gradients that depend on the step alone.
template <class T, class Model = T>
struct Run {
  CpuBackend<T> backend;
  std::vector<ParameterSlot> slots{{"fc.weight", {3, 4}, 0, 12}, {"norm.weight", {4}, 12, 4}};
  std::vector<Model> weights;
  AdamW<CpuBackend<T>, Model> optimizer;

  explicit Run(float start = 1)
      : weights(16, Model(start)), optimizer(backend, view(), slots, AdamWOptions{}) {}

  View<Model, 1> view() { return {weights.data(), {index_t(weights.size())}}; }
  void step(index_t n) {
    const Random random(99, std::uint64_t(n));
    std::vector<T> gradient;
    for (std::uint64_t i = 0; i < 16; ++i) gradient.push_back(T(random.normal(i)));
    optimizer.step(view(), View<T, 1>{gradient.data(), {16}}, 0.01, 1,
                   n % 3 == 0 ? std::vector<index_t>{1} : std::vector<index_t>{});
  }
  fs::path save(const CheckpointFolders& folders, index_t n,
                DType dtype = default_export_dtype<Model>()) {
    return save_checkpoint(folders, n, optimizer, view(), config, state_of(n), dtype);
  }
  nlohmann::json load(const fs::path& folder) {
    return load_checkpoint(folder, optimizer, view(), options);
  }
};

std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T, class Model>
void resume_equals_uninterrupted() {
  TemporaryFolder folder;
  const CheckpointFolders folders(folder.path());
  Run<T, Model> whole, first, second(7);
  for (index_t n = 1; n <= 10; ++n) whole.step(n);
  for (index_t n = 1; n <= 5; ++n) first.step(n);
  const auto path = first.save(folders, 5);
  CHECK(second.load(path).at("step") == 5);
  CHECK(same_bits(second.weights, first.weights));
  CHECK(second.optimizer.steps() == first.optimizer.steps());
  for (index_t n = 6; n <= 10; ++n) second.step(n);
  CHECK(same_bits(second.weights, whole.weights));
}

/// The message of the Error that loading throws.
std::string complaint(const fs::path& folder) {
  Run<float> run;
  const auto before = run.weights;
  try {
    run.load(folder);
  } catch (const Error& error) {
    CHECK(same_bits(run.weights, before));
    return error.what();
  }
  return "none";
}

/// A saved checkpoint whose optimizer file is written anew with other tensors.
std::string complaint_with(const std::vector<TensorData>& tensors) {
  TemporaryFolder folder;
  Run<float> run;
  const auto path = run.save(CheckpointFolders(folder.path()), 1);
  write_safetensors(path / "optimizer.safetensors", tensors);
  const std::string text = complaint(path),
                    prefix = (path / "optimizer.safetensors").string() + ": ";
  return text.starts_with(prefix) ? text.substr(prefix.size()) : "[other prefix] " + text;
}

TEST_CASE("a resumed run is the uninterrupted one, bit for bit") {
  resume_equals_uninterrupted<float, float>();
  resume_equals_uninterrupted<double, double>();
  resume_equals_uninterrupted<float, bfloat16>();
}

TEST_CASE("a checkpoint is a published draft: names, shapes and dtype") {
  TemporaryFolder folder;
  const CheckpointFolders folders(folder.path());
  Run<float> run;
  run.step(1);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto path = run.save(folders, 1, dtype);
    CHECK(path.filename() == "step-000001");
    const SafetensorsFile model(path / "model.safetensors");
    CHECK(model.metadata().at("format") == "pt");
    CHECK(model.tensors().size() == 2);
    CHECK(model.at("fc.weight").dtype == dtype);
    CHECK(model.at("fc.weight").shape == std::vector<index_t>{3, 4});
    const auto fc = model.read<float>("fc.weight"), norm = model.read<float>("norm.weight");
    for (std::size_t i = 0; i < 16; ++i) {
      const float value = run.weights[i], stored = i < 12 ? fc[i] : norm[i - 12];
      CHECK(stored == (dtype == DType::f32 ? value : static_cast<float>(bfloat16(value))));
    }
    const auto written = read_json(path / "config.json");
    CHECK(written.at("dtype") == (dtype == DType::f32 ? "float32" : "bfloat16"));
    CHECK(written.at("hidden_size") == 4);
  }
  CHECK(export_dtypes.named("bf16") == DType::bf16);
  CHECK_THROWS_WITH_AS(export_dtypes.named("f16"),
                       "export dtype 'f16' is unknown; known are f32 and bf16", Error);
  CHECK(default_export_dtype<bfloat16>() == DType::bf16);
}

TEST_CASE("options that do not agree are named with both values") {
  TemporaryFolder folder;
  Run<float> run;
  const auto path = run.save(CheckpointFolders(folder.path()), 1);
  const std::string file = (path / "trainer_state.json").string();
  const auto load = [&](const nlohmann::json& here) {
    try {
      load_checkpoint(path, run.optimizer, run.view(), here);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  const std::string prefix = file + ": the run cannot go on with other options: ";
  CHECK(load(options) == "none");
  CHECK(load({{"seed", 43}, {"learning_rate", 6e-4}}) ==
        prefix + "\"seed\" is 42 there, but 43 here");
  CHECK(load({{"seed", 42}}) == prefix + "\"learning_rate\" is 0.0006 there, but not set here");
  CHECK(load({{"seed", 42}, {"learning_rate", 6e-4}, {"gamma", 7}}) ==
        prefix + "\"gamma\" is not there, but 7 here");
  write_json(path / "trainer_state.json", {{"options", {{"draft", {{"layers", 2}}}}}});
  CHECK(load({{"draft", {{"layers", 3}}}}) == prefix + "\"draft.layers\" is 2 there, but 3 here");
  CHECK(load({{"draft", {{"layers", 2}}}}) == "none");
  CHECK(load({{"draft", 2}}) == prefix + "\"draft\" is {\"layers\":2} there, but 2 here");
  write_json(path / "trainer_state.json", {{"step", 1}});
  CHECK(load(options) == file + " has no field \"options\"");
  write_file(path / "trainer_state.json", "{\"step\": ");
  CHECK(load(options).starts_with(file + ":1:"));
}

TEST_CASE("tensors that do not fit are named, and nothing is changed") {
  const std::vector<float> zeros(12);
  const std::vector<double> wide(12);
  const std::vector<std::int64_t> steps{1, 1}, negative{1, -1};
  std::vector<TensorData> good;
  for (const std::string part : {"master.", "first_moment.", "second_moment."}) {
    good.push_back({part + "fc.weight", DType::f32, {3, 4}, zeros.data()});
    good.push_back({part + "norm.weight", DType::f32, {4}, zeros.data()});
  }
  good.push_back({"steps", DType::i64, {2}, steps.data()});
  CHECK(complaint_with(good) == "[other prefix] none");

  auto bad = good;
  bad.erase(bad.begin() + 3);
  CHECK(complaint_with(bad) == "it has no tensor \"first_moment.norm.weight\"");
  bad = good;
  bad[5].shape = {2, 2};
  CHECK(complaint_with(bad) ==
        "tensor \"second_moment.norm.weight\" has shape (2, 2) where the model has (4)");
  bad = good;
  bad[0] = {"master.fc.weight", DType::f64, {3, 4}, wide.data()};
  CHECK(complaint_with(bad) == "tensor \"master.fc.weight\" is F64 where this run has F32");
  bad = good;
  bad.push_back({"master.extra", DType::f32, {1}, zeros.data()});
  CHECK(complaint_with(bad) == "tensor \"master.extra\" belongs to no weight of the model");
  bad = good;
  bad.back().data = negative.data();
  CHECK(complaint_with(bad) == "tensor \"steps\" counts -1 steps");
}

TEST_CASE("a truncated or missing file is named") {
  TemporaryFolder folder;
  Run<float> run;
  const auto path = run.save(CheckpointFolders(folder.path()), 1);
  const auto file = path / "optimizer.safetensors";
  fs::resize_file(file, fs::file_size(file) - 8);
  CHECK(complaint(path).starts_with(file.string() + ": "));
  fs::resize_file(file, 5);
  CHECK(complaint(path).starts_with(file.string() + ": "));
  fs::remove(file);
  CHECK(complaint(path).find(file.string()) != std::string::npos);
}

TEST_CASE("a failed save leaves nothing behind") {
  TemporaryFolder folder;
  const CheckpointFolders folders(folder.path());
  Run<float> run;
  run.save(folders, 1);
  CHECK_THROWS_AS(folders.save(2, [](const fs::path&) { throw Error("disk full"); }), Error);
  CHECK(std::distance(fs::directory_iterator(folder.path()), {}) == 2);  // step-000001, latest
  CHECK(bytes_of(folder.path() / "latest") == "step-000001\n");
}

TEST_CASE("after a kill at any moment the last complete checkpoint loads") {
  TemporaryFolder folder;
  index_t reached = 0;
  for (int round = 0; round < 12; ++round) {
    int ready[2];
    REQUIRE(::pipe(ready) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      const CheckpointFolders folders(folder.path(), 3);
      Run<float> run;
      for (index_t n = reached + 1;; ++n) {
        run.weights.assign(16, float(n));
        run.optimizer.steps().assign(2, n);
        run.save(folders, n);
        if (n == reached + 2 && ::write(ready[1], "!", 1) != 1) ::_exit(1);
      }
    }
    char byte;
    REQUIRE(::read(ready[0], &byte, 1) == 1);
    ::usleep(useconds_t(500 + 1700 * round));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    ::close(ready[0]);
    ::close(ready[1]);

    const CheckpointFolders folders(folder.path(), 3);
    for (const auto& entry : fs::directory_iterator(folder.path()))
      CHECK_FALSE(entry.path().filename().string().starts_with(temporary_prefix));
    const auto latest = folders.latest();
    REQUIRE(latest);
    Run<float> run(-1);
    const index_t step = run.load(*latest).at("step");
    CHECK(step >= reached + 2);
    CHECK(latest->filename() == checkpoint_name(step));
    CHECK(run.weights == std::vector<float>(16, float(step)));
    CHECK(run.optimizer.steps() == std::vector<index_t>(2, step));
    CHECK(SafetensorsFile(*latest / "model.safetensors").read<float>("norm.weight") ==
          std::vector<float>(4, float(step)));
    reached = step;
  }
}

}  // namespace checkpoint_test
