// Trains a DFlash draft from captured hidden states:
//   prepare_hidden_states --target-model-path T --data-path D.jsonl --output-path STORE
//   train_offline --target-model-path T --train-hidden-states-path STORE --output-dir OUT

#include "guarded.hpp"
#include "train_report.hpp"

using namespace dflash;

int main(int argc, char** argv) {
  return examples::guarded("train_offline", [&] {
    CLI::App app("Trains a DFlash draft model from captured hidden states.", "train_offline");
    app.failure_message(examples::flag_failure);
    examples::TrainOptions options;
    std::filesystem::path store;
    options.add_to(app);
    app.add_option("--train-hidden-states-path", store, "folder of prepare_hidden_states")
        ->required();
    CLI11_PARSE(app, argc, argv);

    const OfflineShardDataset dataset(
        store, {.model_type = "dflash",
                .target_fingerprint = target_fingerprint(options.target_model_path)});
    if (dataset.size() == 0) throw Error(store.string() + " holds no samples");
    const DraftConfig config =
        options.draft_config(dataset.description().layer_ids, dataset.description().block_size);
    const BlockOptions block_options = options.blocks(config);
    const LossOptions loss_options = options.loss_options();
    const Schedule rate = options.schedule(dataset.size());
    const auto contract =
        options.contract(config, dataset.size(), dataset.description().data_fingerprint);

    CpuBackend<float> backend(options.worker_threads());
    SequenceParallelGroup group(SingleProcess{});
    const FrozenTarget target(backend, options.target_model_path, options.keys);
    LocalAttention attention(backend);
    DFlashBlock block(attention, config.shape);
    DraftModel model(block, config);
    auto weights = examples::initial_weights(backend, config, options);
    auto gradients = zero_parameters(backend, config);
    AdamW optimizer(backend, weights.flat(), weights.slots(), options.adamw());
    SampleOrder order(dataset.size(), options.seed);
    const CheckpointFolders checkpoints(options.output_dir, options.max_checkpoints);
    const index_t first =
        examples::resumed_step(options, checkpoints, optimizer, weights, contract);
    examples::Reporter report(options, rate, first);
    const auto save = [&](index_t steps) {
      report.saved(save_checkpoint(
          checkpoints, steps, optimizer, weights.flat(), config.to_json("float32"),
          {{"step", steps}, {"options", contract}}, export_dtype_named(options.export_dtype)));
    };
    if (options.save_initial && first == 0) save(0);

    for (index_t step = first; step < rate.total; ++step) {
      LossResult loss;
      fill(backend, gradients.flat(), 0);
      for (index_t micro = 0; micro < options.accumulation_steps; ++micro) {
        std::vector<Sample> samples;
        std::vector<Blocks> blocks;
        const Range own =
            replica_positions(step, micro, options.batch_size, options.accumulation_steps,
                              group.replicas(), group.replica());
        for (index_t position = own.begin; position < own.end; ++position) {
          samples.push_back(dataset[order.sample(position)]);
          blocks.push_back(sample_blocks(samples.back(), block_options, options.seed,
                                         std::uint64_t(order.epoch(position))));
          report.count_tokens(samples.back().tokens.size());
        }
        const auto batch = shard(backend, group, samples, blocks, *config.mask_token);
        typename decltype(model)::Saved saved;
        model.forward(weights, target.embedding(), batch, saved);
        Tensor<CpuBackend<float>, float, 2> doutput(backend,
                                                    {batch.tokens.size(), config.shape.hidden});
        loss +=
            draft_loss(backend, target.lm_head(), saved.output.view(), batch.labels, batch.weights,
                       config.block_size, batch.samples, loss_options, doutput.view());
        model.backward(weights, batch, saved, doutput.view(), gradients);
      }
      const double norm =
          optimizer.step(weights.flat(), gradients.flat(), rate(step), loss.denominator);
      report.step(step, order.epoch((step + 1) * options.step_samples() - 1), loss, norm);
      if (options.saves_after(step, rate.total)) save(step + 1);
    }
    report.finish();
    return 0;
  });
}
