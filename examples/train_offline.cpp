// Trains a DFlash draft from captured hidden states:
//   prepare_hidden_states --target-model-path T --model-type dflash --data-path D.jsonl
//     --output-path STORE
//   train_offline --target-model-path T --train-hidden-states-path STORE --output-dir OUT
// On several ranks: --ranks 4 --sp-ulysses-size 2, or under mpirun as train_offline_mpi. On GPUs:
// train_offline_gpu.

#include "guarded.hpp"
#include "launch.hpp"
#include "train_report.hpp"

using namespace dflash;
using B = examples::Device::Backend;

namespace {

struct Options : examples::TrainOptions {
  std::filesystem::path store;
  bool skip_corrupt = false;

  void check_keys() const {
    if (keys.lm_head != TargetKeys().lm_head && has_tied_head(target_model_path / "config.json"))
      throw Error("--lm-head-key " + keys.lm_head + ": the head of this target is its embedding (" +
                  (target_model_path / "config.json").string() + ": tie_word_embeddings)");
  }
};

/// Error naming a rank that leaves other samples out than rank 0: they would train on different
/// ones, each as if it were the others'.
template <class C>
void expect_same_samples(B& backend, C& world, const OfflineShardDataset& dataset) {
  const std::vector<index_t>& own = dataset.left_out();
  const auto keys = one_of_each(
      backend, world, index_t(xxh3(own.data(), index_t(own.size() * sizeof(index_t))) >> 1));
  for (std::size_t rank = 1; rank < keys.size(); ++rank)
    if (keys[rank] != keys[0])
      throw Error(dataset.folder().string() + ": rank " + std::to_string(rank) +
                  " finds other samples damaged than rank 0; all ranks need one store");
}

/// What every rank of the world runs.
template <Communicator C>
void train(C communicator, const Options& options, const OfflineShardDataset& dataset,
           const DraftConfig& config, int threads) {
  const BlockOptions block_options = options.blocks(config);
  const LossOptions loss_options = options.loss_options();
  const Schedule rate = options.schedule(dataset.size());
  const StoreDescription& store = dataset.description();
  auto contract = options.contract(config, dataset.size(), store.data_fingerprint);
  contract["features"] = {{"dtype", name_of(store.dtype)}, {"precision", store.precision}};
  contract["left_out"] = dataset.left_out();

  B backend = options.device.backend(threads);
  SequenceParallelGroup group(std::move(communicator), options.layout);
  C& world = group.world();
  expect_same_samples(backend, world, dataset);
  TensorParallelGroup target_group(world, options.tensor_parallel);
  const FrozenTarget target(backend, options.target_model_path, options.keys,
                            {target_group.share(), target_group.share()});
  const auto head = options.device.head(backend, target.lm_head_slice());
  UlyssesAttention attention(backend, group);
  DFlashBlock block(attention, config.shape);
  DraftModel model(block, config);
  auto weights = examples::initial_weights(backend, config, options);
  Gradients<B> gradients(backend, config);
  ShardedAdamW optimizer(backend, world, weights.flat(), weights.slots(), options.adamw(),
                         gradient_buckets(config, world.size()));
  SampleOrder order(dataset.size(), options.seed);
  examples::Checkpointer checkpointer(options, world, config, contract);
  const index_t first =
      examples::resumed_step(options, world, optimizer, backend, weights, contract);
  examples::Reporter report(options, rate, first, world.rank() == 0);
  if (options.save_initial && first == 0) checkpointer.save(0, optimizer, weights, report);

  // Batch i is that of micro-step i; the next ones are read while this one is trained on.
  const index_t micro_steps = options.accumulation_steps;
  Prefetch batches(first * micro_steps, rate.total * micro_steps, [&](index_t i) {
    std::vector<Sample> samples;
    std::vector<Blocks> blocks;
    double tokens = 0;
    const Range positions = replica_positions(i / micro_steps, i % micro_steps, options.batch_size,
                                              micro_steps, group.replicas(), group.replica());
    for (index_t position = positions.begin; position < positions.end; ++position) {
      samples.push_back(dataset[order.sample(position)]);
      blocks.push_back(sample_blocks(samples.back(), block_options, options.seed,
                                     std::uint64_t(order.epoch(position))));
      if (group.rank() == 0) tokens += double(samples.back().tokens.size());
    }
    return std::pair{
        samples.empty() ? Batch<B>{} : shard(backend, group, samples, blocks, *config.mask_token),
        tokens};
  });

  for (index_t step = first; step < rate.total; ++step) {
    LossResult own(config.block_size);
    for (index_t micro = 0; micro < options.accumulation_steps; ++micro) {
      const auto [batch, tokens] = batches.next();
      own.metrics.tokens += tokens;
      // What is final in a step is sent while backward goes on.
      const auto is_final = [&](index_t bucket) {
        if (micro + 1 == options.accumulation_steps) optimizer.start(gradients.flat(), bucket);
      };
      own += std::visit(
          [&, &batch = batch](const auto& head) {
            return micro_step(model, group, target_group, target.embedding_slice(), head, batch,
                              loss_options, weights, gradients, is_final,
                              micro == 0 ? Result::written : Result::added);
          },
          head);
    }
    const LossResult loss = sum_over_ranks(backend, world, own);
    const double norm =
        optimizer.step(weights.flat(), gradients.flat(), rate(step), loss.denominator);
    report.step(step, order.epoch((step + 1) * options.step_samples() - 1), loss, norm);
    if (options.saves_after(step, rate.total))
      checkpointer.save(step + 1, optimizer, weights, report);
  }
  report.finish();
}

}  // namespace

int main(int argc, char** argv) {
  examples::Launcher launcher(argc, argv);
  return launcher.guarded("train_offline", [&] {
    CLI::App app("Trains a DFlash draft model from captured hidden states.", "train_offline");
    app.failure_message(examples::flag_failure);
    Options options;
    options.add_to(app);
    app.add_option("--train-hidden-states-path", options.store, "folder of prepare_hidden_states")
        ->required();
    app.add_flag("--skip-corrupt", options.skip_corrupt,
                 "read the whole store first and leave damaged samples out, each with a line that "
                 "names it; without this the first one ends the training");
    app.add_option("--embedding-key", options.keys.embedding, "the tensor's name in the target")
        ->capture_default_str();
    app.add_option("--lm-head-key", options.keys.lm_head, "the same of a head of its own")
        ->capture_default_str();
    if (const auto status = launcher.parse(app, argc, argv)) return *status;

    options.check_keys();
    OfflineShardDataset dataset(
        options.store, {.model_type = "dflash",
                        .target_fingerprint = target_fingerprint(options.target_model_path)});
    if (options.skip_corrupt) {
      const auto problems = dataset.leave_damaged_out();
      if (launcher.first()) {
        for (const std::string& problem : problems)
          std::cerr << "--skip-corrupt: " << problem << "\n";
        std::cout << "samples: " << dataset.size() << " sound, " << dataset.left_out().size()
                  << " left out\n";
      }
    }
    if (dataset.size() == 0)
      throw Error(options.store.string() + " holds no " +
                  (options.skip_corrupt ? "undamaged samples" : "samples"));
    const StoreDescription& store = dataset.description();
    const DraftConfig config = options.draft_config(store.layer_ids, store.block_size);
    TrainingPlan plan = options.training_plan(config, launcher.ranks(), store.rows / store.samples,
                                              size_of(store.dtype));
    plan.batches = 2;  // Prefetch makes one ahead
    if (options.plan) {
      if (launcher.first())
        std::cout << "for samples of " << plan.sample_tokens
                  << " tokens, the store's mean; longer ones need more\n"
                  << plan.text();
      return 0;
    }
    if (launcher.first()) std::cout << examples::description(config);
    const int threads = launcher.threads(options.threads);
    launcher.run([&](auto world) { train(std::move(world), options, dataset, config, threads); });
    return 0;
  });
}
