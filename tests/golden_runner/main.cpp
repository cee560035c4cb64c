// Runs every case of the reference data in the folder that DFLASH_GOLDEN names (default: the one in
// the repository), by its kind, and prints how many cases of each kind ran.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>

#include "dflash/io/json_file.hpp"
#include "golden.hpp"

namespace fs = std::filesystem;
using namespace golden;

namespace {

using Run = std::function<void(const GoldenCase&, Report&)>;

const std::map<std::string, Run> kinds = {
    {"anchors", run_anchors},
    {"collator", run_collator},
    {"draft_forward", run_draft_forward},
    {"features", run_features},
    {"generate", run_generate},
    {"gguf", run_gguf},
    {"layer_ids", run_layer_ids},
    {"mask", run_mask},
    {"optimizer", run_optimizer},
    {"prepare_filter", run_prepare_filter},
    {"replay", run_replay},
    {"schedule", run_schedule},
    {"sp_scatter", run_sp_scatter},
    {"stored_sample", run_stored_sample},
    {"target", run_target},
    {"usp_step", run_usp_step},
};

// These run on every path and in every precision that the machine has.
const std::map<std::string, void (*)(const GoldenCase&, Way, Report&)> steps = {
    {"train_step", run_train_step}, {"train_step_bf16", run_train_step_bf16}};

const std::map<std::string, void (*)(const fs::path&, Report&)> folders = {
    {"chat", run_chat}, {"tokenizer", run_tokenizer}};

struct Tally {
  int passed = 0, failed = 0, skipped = 0;
};

std::map<std::string, Tally> tallies;

template <class Body>
void run_one(const std::string& kind, const std::string& name, Body&& body) {
  Report report;
  std::string error;
  try {
    body(report);
  } catch (const std::exception& e) {
    error = e.what();
  }
  for (const auto& part : report.skipped())
    std::printf("  skipped   %s: %s\n", name.c_str(), part.c_str());
  for (const auto& failure : report.failures())
    std::printf("  FAILED    %s: %s\n", name.c_str(), failure.c_str());
  if (!error.empty()) std::printf("  FAILED    %s: %s\n", name.c_str(), error.c_str());
  const bool nothing = report.comparisons() == 0 && error.empty();
  if (nothing && report.skipped().empty())
    std::printf("  FAILED    %s: compared nothing\n", name.c_str());
  Tally& tally = tallies[kind];
  if (nothing && !report.skipped().empty()) {
    ++tally.skipped;
  } else if (report.failures().empty() && error.empty() && !nothing) {
    ++tally.passed;
  } else {
    ++tally.failed;
  }
}

std::string only_path, only_precision;

bool wanted(Way way) {
  return (only_path.empty() || only_path == name_of(way.path)) &&
         (only_precision.empty() || only_precision == name_of(way.precision));
}

void run_file(const fs::path& folder, const fs::path& path) {
  const std::string name = path.stem().string();
  nlohmann::json json;
  try {
    json = dflash::read_json(path);
  } catch (const dflash::Error& error) {
    run_one("unreadable", name, [&](Report& r) { r.expect(false, error.what()); });
    return;
  }
  std::string kind = json.is_object() && json.contains("kind") && json["kind"].is_string()
                         ? json["kind"].get<std::string>()
                         : "";
  if (name.starts_with("gguf_")) kind = "gguf";
  if (kind.empty()) return;  // a model's config or another file that is no case
  const auto run = kinds.find(kind);
  const auto step = steps.find(kind);
  if (run == kinds.end() && step == steps.end()) {
    run_one(kind, name, [&](Report& r) { r.expect(false, "unknown kind '" + kind + "'"); });
    return;
  }
  GoldenCase c{folder, name, kind, std::move(json), nullptr};
  const fs::path tensors = path.parent_path() / (name + ".safetensors");
  const auto open = [&] {
    if (fs::exists(tensors)) c.tensors = std::make_shared<dflash::SafetensorsFile>(tensors);
  };
  if (step == steps.end()) {
    run_one(kind, name, [&](Report& report) {
      open();
      run->second(c, report);
    });
    return;
  }
  const auto here = dflash::cpu_paths();
  const auto ways =
      c.is_double() ? std::vector<Way>{{here.back(), dflash::CpuPrecision::fp32}} : ways_of(kind);
  for (const Way way : ways) {
    if (!wanted(way) && !c.is_double()) continue;
    std::string label = kind;
    if (!c.is_double())
      label.append(" on ").append(name_of(way.path)).append(" in ").append(name_of(way.precision));
    if (std::find(here.begin(), here.end(), way.path) == here.end()) {
      ++tallies[label].skipped;
      continue;
    }
    run_one(label, label == kind ? name : name + label.substr(kind.size()), [&](Report& report) {
      open();
      step->second(c, way, report);
    });
  }
}

std::vector<fs::path> cases_in(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_regular_file() && entry.path().extension() == ".json")
      files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  const char* chosen = std::getenv("DFLASH_GOLDEN");
  const fs::path folder = chosen != nullptr && *chosen != '\0' ? chosen : DFLASH_GOLDEN_DEFAULT;
  // [a part of cases' names [the path of training steps [their precision]]]
  const char* only = argc > 1 ? argv[1] : "";
  if (argc > 2) only_path = argv[2];
  if (argc > 3) only_precision = argv[3];
  if (!fs::is_directory(folder)) {
    std::fprintf(stderr, "%s is no folder of reference data\n", folder.c_str());
    return 1;
  }
  for (const auto& path : cases_in(folder))
    if (path.stem().string().find(only) != std::string::npos) run_file(folder, path);
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_directory() || name.find(only) == std::string::npos) continue;
    if (const auto run = folders.find(name); run != folders.end())
      run_one(name, name, [&](Report& r) { run->second(entry.path(), r); });
    if (name.starts_with("ckpt_"))
      for (const auto& path : cases_in(entry.path())) run_file(entry.path(), path);
  }

  Tally all;
  for (const auto& [kind, t] : tallies) {
    std::printf("%-36s %3d passed, %d failed, %d skipped\n", kind.c_str(), t.passed, t.failed,
                t.skipped);
    all.passed += t.passed, all.failed += t.failed, all.skipped += t.skipped;
  }
  std::printf("%-36s %3d passed, %d failed, %d skipped\n", "golden", all.passed, all.failed,
              all.skipped);
  return all.failed == 0 && all.passed > 0 ? 0 : 1;
}
