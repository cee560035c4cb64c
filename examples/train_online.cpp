// Trains a DFlash draft from conversations, with the target in the same process: the loop of
// train_offline, fed by the target instead of a store. From the same data both give the same
// losses.
//   train_online --target-model-path T --train-data-path D.jsonl --output-dir OUT

#include "guarded.hpp"
#include "tokenized_data.hpp"
#include "train_report.hpp"

using namespace dflash;

int main(int argc, char** argv) {
  return examples::guarded("train_online", [&] {
    CLI::App app("Trains a DFlash draft model from conversations and the target itself.",
                 "train_online");
    app.failure_message(examples::flag_failure);
    examples::TrainOptions options;
    examples::DataOptions data_options;
    options.add_to(app);
    data_options.add_to(app, "--train-data-path", 3072);
    CLI11_PARSE(app, argc, argv);

    const TargetConfig target_config = TargetConfig::read(options.target_model_path);
    const DraftConfig config =
        options.draft_config(options.layer_ids(target_config.layers), /*data_block_size=*/16);
    const Tokenizer tokenizer(options.target_model_path);
    const auto data = examples::read_samples(
        data_options, tokenizer, {.block_size = config.block_size}, target_config.vocabulary);
    data.print();
    const BlockOptions block_options = options.blocks(config);
    const LossOptions loss_options = options.loss_options();
    const Schedule rate = options.schedule(index_t(data.samples.size()));
    const auto contract =
        options.contract(config, index_t(data.samples.size()), data.fingerprint());

    CpuBackend<float> backend(options.worker_threads());
    SequenceParallelGroup group(SingleProcess{});
    const TargetModel<CpuBackend<float>> target(backend, options.target_model_path);
    LocalAttention attention(backend);
    DFlashBlock block(attention, config.shape);
    DraftModel model(block, config);
    auto weights = examples::initial_weights(backend, config, options);
    auto gradients = zero_parameters(backend, config);
    AdamW optimizer(backend, weights.flat(), weights.slots(), options.adamw());
    SampleOrder order(index_t(data.samples.size()), options.seed);
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
        const Range own =
            replica_positions(step, micro, options.batch_size, options.accumulation_steps,
                              group.replicas(), group.replica());
        std::vector<TokenizedSample> texts;
        for (index_t position = own.begin; position < own.end; ++position)
          texts.push_back(data.samples[std::size_t(order.sample(position))]);
        const auto memory = examples::capture_samples(target, texts, config.target_layer_ids);
        const std::vector<Sample> samples(memory.begin(), memory.end());
        std::vector<Blocks> blocks;
        for (index_t position = own.begin; position < own.end; ++position) {
          const Sample& sample = samples[std::size_t(position - own.begin)];
          blocks.push_back(sample_blocks(sample, block_options, options.seed,
                                         std::uint64_t(order.epoch(position))));
          report.count_tokens(sample.tokens.size());
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
