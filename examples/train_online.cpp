// Trains a DFlash draft from conversations, with the target in the same process: the loop of
// train_offline, fed by the target instead of a store. Both give the same losses.
//   train_online --target-model-path T --train-data-path D.jsonl --output-dir OUT
// On several ranks: --ranks 4 --sp-ulysses-size 2 --tp-size 4, or under mpirun as train_online_mpi.

#include "guarded.hpp"
#include "launch.hpp"
#include "tokenized_data.hpp"
#include "train_report.hpp"

using namespace dflash;
using B = examples::Device::Backend;

namespace {

struct Options : examples::TrainOptions {
  examples::DataOptions data;
  examples::TargetStorage storage;
};

/// A micro-step's samples of one replica, with their blocks.
struct MicroBatch {
  std::vector<Sample> samples;
  std::vector<Blocks> blocks;
};

/// The features of this rank's context rows. Every rank knows the tokens and blocks of all
/// replicas: target groups run the target on shares of them, as far as a block sees, and send the
/// rows to the ranks that train on them.
template <Communicator C>
Tensor<B, B::value_type, 2> captured(const TargetModel<B, C>& target,
                                     SequenceParallelGroup<C>& group,
                                     const std::vector<MicroBatch>& replicas,
                                     const DraftConfig& config) {
  std::vector<std::vector<index_t>> kept(replicas.size());
  std::vector<const Sample*> all;
  for (std::size_t r = 0; r < replicas.size(); ++r)
    for (std::size_t i = 0; i < replicas[r].samples.size(); ++i) {
      kept[r].push_back(replicas[r].blocks[i].context_rows());
      all.push_back(&replicas[r].samples[i]);
    }
  const FeatureDeal deal(group.layout(), target.group().size(), kept);
  std::vector<std::int32_t> tokens;
  std::vector<index_t> offsets{0};
  const Range share = deal.captured_by(target.group().index());
  for (index_t i = share.begin; i < share.end; ++i) {
    if (deal.kept(i) == 0) continue;
    const auto& text = all[std::size_t(i)]->tokens;
    tokens.insert(tokens.end(), text.data, text.data + deal.kept(i));
    offsets.push_back(index_t(tokens.size()));
  }
  Tensor<B, B::value_type, 2> features(target.backend(), {0, config.feature_width()});
  if (!tokens.empty())
    features =
        std::move(target.prefill(tokens, offsets, {.layers = config.target_layer_ids}).features);
  return exchange_features(target.backend(), group, target.group().index(), deal,
                           std::move(features), config.feature_width());
}

/// What every rank of the world runs.
template <Communicator C>
void train(C communicator, const Options& options, const examples::TokenizedData& data,
           const DraftConfig& config, int threads) {
  const index_t size = index_t(data.samples.size());
  const BlockOptions block_options = options.blocks(config);
  const LossOptions loss_options = options.loss_options();
  const Schedule rate = options.schedule(size);
  auto contract = options.contract(config, size, data.fingerprint());
  contract["features"] = {{"precision", options.device.precision + options.storage.rounding()}};

  B backend = options.device.backend(threads);
  SequenceParallelGroup group(std::move(communicator), options.layout);
  C& world = group.world();
  TensorParallelGroup target_group(world, options.tensor_parallel);
  const TargetModel target(backend, target_group, options.target_model_path, options.storage);
  const auto head = options.device.head(backend, target.ends().lm_head_slice());
  UlyssesAttention attention(backend, group);
  DFlashBlock block(attention, config.shape);
  DraftModel model(block, config);
  auto weights = examples::initial_weights(backend, config, options);
  Gradients<B> gradients(backend, config);
  ShardedAdamW optimizer(backend, world, weights.flat(), weights.slots(), options.adamw(),
                         gradient_buckets(config, world.size()));
  SampleOrder order(size, options.seed);
  examples::Checkpointer checkpointer(options, world, config, contract);
  const index_t first =
      examples::resumed_step(options, world, optimizer, backend, weights, contract);
  examples::Reporter report(options, rate, first, world.rank() == 0);
  if (options.save_initial && first == 0) checkpointer.save(0, optimizer, weights, report);

  for (index_t step = first; step < rate.total; ++step) {
    LossResult own(config.block_size);
    for (index_t micro = 0; micro < options.accumulation_steps; ++micro) {
      std::vector<MicroBatch> replicas(std::size_t(group.replicas()));
      for (index_t replica = 0; replica < group.replicas(); ++replica) {
        auto& [samples, blocks] = replicas[std::size_t(replica)];
        const Range positions = replica_positions(
            step, micro, options.batch_size, options.accumulation_steps, group.replicas(), replica);
        for (index_t position = positions.begin; position < positions.end; ++position) {
          samples.push_back(view_of(data.samples[std::size_t(order.sample(position))]));
          blocks.push_back(sample_blocks(samples.back(), block_options, options.seed,
                                         std::uint64_t(order.epoch(position))));
        }
      }
      auto features = captured(target, group, replicas, config);
      const auto& [samples, blocks] = replicas[std::size_t(group.replica())];
      if (group.rank() == 0)
        for (const Sample& sample : samples) own.metrics.tokens += double(sample.tokens.size());
      const auto batch = shard(backend, group, blocks, *config.mask_token, std::move(features));
      // What is final in a step is sent while backward goes on.
      const auto is_final = [&](index_t bucket) {
        if (micro + 1 == options.accumulation_steps) optimizer.start(gradients.flat(), bucket);
      };
      own += std::visit(
          [&](const auto& head) {
            return micro_step(model, group, target_group, target.ends().embedding_slice(), head,
                              batch, loss_options, weights, gradients, is_final,
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
  return launcher.guarded("train_online", [&] {
    CLI::App app("Trains a DFlash draft model from conversations and the target itself.",
                 "train_online");
    app.failure_message(examples::flag_failure);
    Options options;
    options.add_to(app);
    options.data.add_to(app, "--train-data-path", 3072);
    options.storage.add_to(app);
    if (const auto status = launcher.parse(app, argc, argv)) return *status;

    const TargetConfig target = TargetConfig::read(options.target_model_path);
    const DraftConfig config =
        options.draft_config(options.layer_ids(target.layers), /*data_block_size=*/16);
    TrainingPlan plan = options.training_plan(config, launcher.ranks(), options.data.max_length, 0);
    plan.target = target;
    if (options.storage.name == "wide") plan.bfloat16_target = false;
    if (options.plan) {
      if (launcher.first()) std::cout << plan.text();
      return 0;
    }
    const Tokenizer tokenizer(options.target_model_path);
    const auto data = examples::read_samples(options.data, tokenizer,
                                             {.block_size = config.block_size}, target.vocabulary);
    if (launcher.first()) {
      data.print();
      std::cout << examples::description(config);
    }
    const int threads = launcher.threads(options.threads);
    launcher.run([&](auto world) { train(std::move(world), options, data, config, threads); });
    return 0;
  });
}
