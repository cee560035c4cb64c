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

/// Loads the newest checkpoint if there is one and --resume asks for it. Returns the steps done.
template <class B>
index_t resumed_step(const TrainOptions& options, const dflash::CheckpointFolders& checkpoints,
                     dflash::AdamW<B>& optimizer, dflash::Parameters<B>& weights,
                     const nlohmann::json& contract) {
  const auto latest = checkpoints.latest();
  if (!options.resume) {
    if (latest)
      throw dflash::Error(latest->string() +
                          " is a checkpoint of an earlier run: give --resume or another "
                          "--output-dir");
    return 0;
  }
  if (!latest) return 0;
  const auto state = dflash::load_checkpoint(*latest, optimizer, weights.flat(), contract);
  std::cout << "resuming from " << latest->string() << "\n";
  return dflash::required<index_t>(state, "step", *latest / "trainer_state.json");
}

/// Shows progress, and writes log.jsonl.
class Reporter {
 public:
  Reporter(const TrainOptions& options, const dflash::Schedule& rate, index_t first)
      : interval_(options.log_interval),
        rate_(rate),
        progress_(std::cout, dflash::is_terminal(stdout), rate.total, first),
        log_(options.output_dir, first) {}

  void count_tokens(std::size_t n) { tokens_ += double(n); }

  /// After optimizer step `step`, counted from 0. Losses of a log line are over all its steps.
  void step(index_t step, index_t epoch, const dflash::LossResult& loss, double norm) {
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
                                  .tokens_per_second = tokens_ / (now - start_),
                                  .skipped_steps = skipped_};
    const bool due = (step + 1) % interval_ == 0 || step + 1 == rate_.total;
    progress_.show(record, due);
    if (!due) return;
    log_.write(record);
    tokens_ = 0;
    start_ = now;
    forget();
  }

  /// A line is of the steps since the line or the checkpoint before, as it is in a resumed run.
  void saved(const std::filesystem::path& folder) {
    last_ = folder;
    forget();
  }
  void finish() {
    progress_.finish();
    if (!last_.empty()) std::cout << "checkpoint: " << last_.string() << "\n";
  }

 private:
  void forget() {
    window_ = {};
    skipped_ = 0;
  }

  index_t interval_;
  dflash::Schedule rate_;
  dflash::TrainingProgress progress_;
  dflash::TrainingLog log_;
  dflash::LossResult window_;
  double tokens_ = 0, start_ = dflash::seconds_now();
  index_t skipped_ = 0;
  std::filesystem::path last_;
};

}  // namespace examples
