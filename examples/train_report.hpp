#pragma once

#include <iostream>

#include "train_options.hpp"

namespace examples {

/// Fresh weights, or those of a draft to start from.
template <class B>
dflash::Parameters<B> initial_weights(B& backend, const dflash::DraftConfig& config,
                                      const TrainOptions& options) {
  return options.draft_checkpoint_path.empty()
             ? dflash::random_parameters(backend, config, options.seed)
             : dflash::read_parameters(backend, config, options.draft_checkpoint_path);
}

/// What is trained, in a line.
inline std::string description(const dflash::DraftConfig& draft) {
  return "draft: " + std::to_string(draft.layers) + (draft.layers == 1 ? " layer" : " layers") +
         " of " + std::to_string(draft.shape.hidden) + ", on target layers " +
         nlohmann::json(draft.target_layer_ids).dump() + ", blocks of " +
         std::to_string(draft.block_size) + "\n";
}

/// Loads the newest checkpoint if there is one and --resume asks for it, on any number of ranks.
/// Returns the steps done.
template <class B, class C>
index_t resumed_step(const TrainOptions& options, C& world, dflash::ShardedAdamW<B, C>& optimizer,
                     B& backend, dflash::Parameters<B>& weights, const nlohmann::json& contract) {
  const auto latest = dflash::agreed_checkpoint(backend, world, options.output_dir);
  if (!options.resume) {
    if (latest)
      throw dflash::Error(latest->string() +
                          " is a checkpoint of an earlier run: give --resume or another "
                          "--output-dir");
    return 0;
  }
  if (!latest) return 0;
  nlohmann::json state;
  optimizer.fill_whole(weights.flat(), [&](dflash::AdamW<B>& whole) {
    state = dflash::load_checkpoint(*latest, whole, weights.flat(), contract);
  });
  const auto done = dflash::required<index_t>(state, "step", *latest / "trainer_state.json");
  if (world.rank() == 0)
    std::cout << "resuming from " << latest->string()
              << (done == contract.at("total_steps").get<index_t>() ? ", which is the last" : "")
              << "\n";
  return done;
}

/// Shows progress, and writes log.jsonl: on one rank of the world.
class Reporter {
 public:
  Reporter(const TrainOptions& options, const dflash::Schedule& rate, index_t first, bool active)
      : options_(&options),
        rate_(rate),
        progress_(std::cout, dflash::is_terminal(stdout), rate.total, first) {
    if (active) log_.emplace(options.output_dir, first);
  }

  /// After optimizer step `step`, counted from 0. A line of the log is of all steps since the one
  /// before; there is one at every checkpoint, so that a resumed run has the same lines.
  void step(index_t step, index_t epoch, const dflash::LossResult& loss, double norm) {
    if (!log_) return;
    window_ += loss;
    const double now = dflash::seconds_now();
    if (!std::isfinite(norm)) ++skipped_;
    dflash::TrainingRecord record{.step = step + 1,
                                  .epoch = epoch,
                                  .loss = window_.loss(),
                                  .accuracy = window_.metrics.accuracy(),
                                  .acceptance = window_.metrics.acceptance(),
                                  .grad_norm = norm,
                                  .learning_rate = rate_(step),
                                  .tokens_per_second = window_.metrics.tokens / (now - start_),
                                  .skipped_steps = skipped_};
    const bool due =
        (step + 1) % options_->log_interval == 0 || options_->saves_after(step, rate_.total);
    progress_.show(record, due);
    if (!due) return;
    log_->write(record);
    start_ = now;
    window_ = {};
    skipped_ = 0;
  }

  /// The time that saving took is not that of the next steps.
  void saved(const std::filesystem::path& folder) {
    last_ = folder;
    start_ = dflash::seconds_now();
  }
  void finish() {
    if (!log_) return;
    progress_.finish();
    if (!last_.empty()) std::cout << "checkpoint: " << last_.string() << "\n";
  }

 private:
  const TrainOptions* options_;
  dflash::Schedule rate_;
  dflash::TrainingProgress progress_;
  std::optional<dflash::TrainingLog> log_;
  dflash::LossResult window_;
  double start_ = dflash::seconds_now();
  index_t skipped_ = 0;
  std::filesystem::path last_;
};

/// Saves whole tensors, whoever holds them: all ranks gather, the first one writes.
template <class C>
class Checkpointer {
 public:
  /// The first rank prepares the folder before any other looks into it.
  Checkpointer(const TrainOptions& options, C& world, const dflash::DraftConfig& config,
               const nlohmann::json& contract)
      : world_(&world),
        config_(config.to_json("float32")),
        contract_(contract),
        dtype_(dflash::export_dtypes.named(options.export_dtype)) {
    if (world.rank() == 0) folders_.emplace(options.output_dir, options.max_checkpoints);
    world.barrier();
  }

  template <class B>
  void save(index_t steps, dflash::ShardedAdamW<B, C>& optimizer, dflash::Parameters<B>& weights,
            Reporter& report) {
    optimizer.visit_whole(weights.flat(), [&](dflash::AdamW<B>& whole) {
      if (folders_)
        report.saved(dflash::save_checkpoint(*folders_, steps, whole, weights.flat(), config_,
                                             {{"step", steps}, {"options", contract_}}, dtype_));
    });
    world_->barrier();
  }

 private:
  C* world_;
  std::optional<dflash::CheckpointFolders> folders_;
  nlohmann::json config_, contract_;
  dflash::DType dtype_;
};

}  // namespace examples
