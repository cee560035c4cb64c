// Trains a DFlash draft from conversations, with the target in the same process: the loop of
// train_offline, fed by the target instead of a store. Both give the same losses.
//   train_online --target-model-path T --train-data-path D.jsonl --output-dir OUT
// On several ranks: --ranks 4 --sp-ulysses-size 2 --tp-size 4, or under mpirun as train_online_mpi.

#include "guarded.hpp"
#include "launch.hpp"
#include "tokenized_data.hpp"
#include "train_report.hpp"

using namespace dflash;
using B = CpuBackend<float>;

namespace {

struct Options : examples::TrainOptions {
  examples::DataOptions data;
};

/// What every rank of the world runs.
template <Communicator C>
void train(C communicator, const Options& options, const examples::TokenizedData& data,
           const DraftConfig& config, int threads) {
  const index_t size = index_t(data.samples.size());
  const BlockOptions block_options = options.blocks(config);
  const LossOptions loss_options = options.loss_options();
  const Schedule rate = options.schedule(size);
  const auto contract = options.contract(config, size, data.fingerprint());

  B backend(threads, cpu_precision_named(options.precision));
  SequenceParallelGroup group(std::move(communicator), options.layout);
  C& world = group.world();
  TensorParallelGroup target_group(world, options.tensor_parallel);
  const TargetModel target(backend, target_group, options.target_model_path);
  UlyssesAttention attention(backend, group);
  DFlashBlock block(attention, config.shape);
  DraftModel model(block, config);
  auto weights = examples::initial_weights(backend, config, options);
  auto gradients = zero_gradients(backend, config);
  ShardedAdamW optimizer(backend, world, weights.flat(), weights.slots(), options.adamw());
  SampleOrder order(size, options.seed);
  examples::Checkpointer checkpointer(options, world, config, contract);
  const index_t first =
      examples::resumed_step(options, world, optimizer, backend, weights, contract);
  examples::Reporter report(options, rate, first, world.rank() == 0);
  if (options.save_initial && first == 0) checkpointer.save(0, optimizer, weights, report);

  for (index_t step = first; step < rate.total; ++step) {
    LossResult own(config.block_size);
    fill(backend, gradients.flat(), 0);
    for (index_t micro = 0; micro < options.accumulation_steps; ++micro) {
      const auto positions_of = [&](index_t replica) {
        return replica_positions(step, micro, options.batch_size, options.accumulation_steps,
                                 group.replicas(), replica);
      };
      // The ranks of a target group run it for every replica that one of them belongs to.
      const index_t first_rank = target_group.index() * target_group.size();
      std::vector<MemorySample> memory;
      for (index_t replica = first_rank / options.layout.ranks();
           replica <= (first_rank + target_group.size() - 1) / options.layout.ranks(); ++replica) {
        std::vector<TokenizedSample> texts;
        for (index_t p = positions_of(replica).begin; p < positions_of(replica).end; ++p)
          texts.push_back(data.samples[std::size_t(order.sample(p))]);
        auto captured = examples::capture_samples(target, texts, config.target_layer_ids);
        if (replica == group.replica()) memory = std::move(captured);
      }
      const std::vector<Sample> samples(memory.begin(), memory.end());
      std::vector<Blocks> blocks;
      for (const Sample& sample : samples) {
        const index_t position = positions_of(group.replica()).begin + index_t(blocks.size());
        blocks.push_back(sample_blocks(sample, block_options, options.seed,
                                       std::uint64_t(order.epoch(position))));
        if (group.rank() == 0) own.metrics.tokens += double(sample.tokens.size());
      }
      own += micro_step(model, group, target_group, target.ends().embedding_slice(),
                        target.ends().lm_head_slice(), samples, blocks, loss_options, weights,
                        gradients);
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
  return launcher.guarded("train_online", [&] {
    CLI::App app("Trains a DFlash draft model from conversations and the target itself.",
                 "train_online");
    app.failure_message(examples::flag_failure);
    Options options;
    options.add_to(app);
    options.data.add_to(app, "--train-data-path", 3072);
    if (const auto status = launcher.parse(app, argc, argv)) return *status;

    const TargetConfig target = TargetConfig::read(options.target_model_path);
    const DraftConfig config =
        options.draft_config(options.layer_ids(target.layers), /*data_block_size=*/16);
    TrainingPlan plan = options.training_plan(config, launcher.ranks(), options.data.max_length, 0);
    plan.target = target;
    if (options.plan) {
      if (launcher.first()) std::cout << plan.text();
      return 0;
    }
    const Tokenizer tokenizer(options.target_model_path);
    const auto data = examples::read_samples(options.data, tokenizer,
                                             {.block_size = config.block_size}, target.vocabulary);
    if (launcher.first()) data.print();
    const int threads = launcher.threads(options.threads);
    launcher.run([&](auto world) { train(std::move(world), options, data, config, threads); });
    return 0;
  });
}
