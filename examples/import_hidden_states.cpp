// Makes a store of the files that SpecForge's prepare_hidden_states.py wrote (.ckpt, .ckpt.gz):
//   import_hidden_states --hidden-states-path FOLDER --target-model-path T --output-path STORE
// An import that was interrupted goes on where it stopped when the same command runs again.

#include <iostream>

#include "dflash/import.hpp"
#include "guarded.hpp"
#include "store_options.hpp"

using namespace dflash;
namespace fs = std::filesystem;

namespace {

std::vector<float> values(const TensorEntry& tensor) {
  if (tensor.shape.empty()) return {};  // a sample that has no last hidden states
  std::vector<float> out(std::size_t(tensor.size()));
  convert(tensor, out.data());
  return out;
}

/// Every sample's rows are as wide as the captured layers and hold what the first one's do, and its
/// tokens are the target's.
void check_like(const SpecForgeFolder& folder, const SpecForgeSample& sample,
                const StoreDescription& store, index_t vocabulary) {
  const std::string path = (folder.path() / sample.tokenized().id).string();
  if (sample.model_type() != store.model_type)
    throw Error(path + " holds what " + sample.model_type() + " needs, the first file what " +
                store.model_type + " needs");
  const index_t width = sample.features().shape[1];
  if (width != store.width())
    throw Error(path + ": rows of " + std::to_string(width) + " numbers are not " +
                std::to_string(store.layer_ids.size()) + " captured layers of " +
                std::to_string(store.hidden_size) +
                " (--target-layer-ids, --draft-config-path and --num-draft-layers say which)");
  const auto& last_hidden = sample.last_hidden().shape;
  if (!last_hidden.empty() && last_hidden[1] != store.hidden_size)
    throw Error(path + ": last hidden states of " + std::to_string(last_hidden[1]) +
                " numbers where the target has a hidden size of " +
                std::to_string(store.hidden_size));
  for (const std::int32_t token : sample.tokenized().tokens)
    if (token < 0 || token >= vocabulary)
      throw Error(path + ": token " + std::to_string(token) +
                  " is outside the target's vocabulary of " + std::to_string(vocabulary));
}

View<const float, 2> matrix(const std::vector<float>& values, const TensorEntry& tensor) {
  if (tensor.shape.empty()) return {};
  return {values.data(), {tensor.shape[0], tensor.shape[1]}};
}

void import_samples(const fs::path& from, const examples::StoreOptions& options) {
  const SpecForgeFolder folder(from);
  const TargetConfig target = TargetConfig::read(options.target);
  ShardPlan plan(options.describe(target, folder[0].model_type(), "none", "unknown"));
  const StoreDescription store = plan.description();
  for (index_t i = 0; i < folder.size(); ++i) {
    const SpecForgeSample sample = folder[i];
    check_like(folder, sample, store, target.vocabulary);
    plan.add(sample.tokenized());
  }
  examples::print_size(plan, options.output);
  ShardWriter writer(options.output, plan);
  if (writer.next() == plan.size()) {
    std::printf("nothing to do, the store is complete: %s\n", options.output.c_str());
    return;
  }
  CountProgress progress(std::cout, is_terminal(stdout), "samples", plan.size(), writer.next());
  while (writer.next() < plan.size()) {
    const SpecForgeSample sample = folder[writer.next()];
    const auto features = values(sample.features()), last_hidden = values(sample.last_hidden());
    writer.write(sample.tokenized(), matrix(features, sample.features()),
                 matrix(last_hidden, sample.last_hidden()));
    progress.show(writer.next());
  }
  std::printf("store: %s\n", options.output.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  return examples::guarded("import_hidden_states", [&] {
    CLI::App app("Makes a store of hidden states that SpecForge captured.", "import_hidden_states");
    app.failure_message(examples::flag_failure);
    fs::path from;
    examples::StoreOptions options;
    app.add_option("--hidden-states-path", from, "folder of .ckpt or .ckpt.gz files")->required();
    options.add_to(app);
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      return app.exit(error);
    }
    import_samples(from, options);
    return 0;
  });
}
