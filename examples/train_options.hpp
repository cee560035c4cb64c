#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "device.hpp"
#include "dflash/any_backend.hpp"
#include "dflash/text/tokenizer.hpp"
#include "flag_checks.hpp"

namespace examples {

using dflash::index_t;

/// The flags that both trainers share, with the reference's names and defaults.
struct TrainOptions {
  std::filesystem::path target_model_path, draft_config_path, draft_checkpoint_path, output_dir;
  index_t block_size = 0, num_anchors = 512;
  std::optional<index_t> num_draft_layers;
  std::optional<std::int32_t> mask_token_id;
  std::string anchor_rule = "pair";
  dflash::LossOptions loss;
  std::string loss_type = "dflash", lr_scheduler = "cosine", export_dtype = Device::export_dtype;
  Device device;
  double learning_rate = 6e-4, warmup_ratio = 0.04, decay_ratio = 0.1, max_grad_norm = 1,
         weight_decay = 0;
  index_t num_epochs = 6, max_steps = 0, batch_size = 1, accumulation_steps = 1;
  index_t log_interval = 50, save_interval = 1000, max_checkpoints = 0;
  std::uint64_t seed = 42;
  int threads = 0;
  bool resume = false, save_initial = false, plan = false;
  dflash::SequenceLayout layout;
  index_t tensor_parallel = 1;  // ranks that hold a target together
  dflash::TargetKeys keys;

  void add_to(CLI::App& app) {
    app.add_option("--target-model-path", target_model_path, "Hugging Face folder of the target")
        ->required();
    app.add_option("--output-dir", output_dir, "where checkpoints and log.jsonl go")->required();
    app.add_option("--draft-config-path", draft_config_path,
                   "the draft's config.json; without it that of --draft-checkpoint-path, or one "
                   "made to fit the target");
    app.add_option("--draft-checkpoint-path", draft_checkpoint_path,
                   "start from the weights of this draft folder");
    app.add_option("--block-size", block_size,
                   "tokens per block; without it the draft config's, else the data's")
        ->check(above_zero());
    app.add_option("--num-draft-layers", num_draft_layers,
                   "of a draft made to fit the target; without it 1")
        ->check(above_zero());
    app.add_option("--mask-token-id", mask_token_id, "without it: draft config, then tokenizer");
    app.add_option("--num-anchors", num_anchors, "blocks per sample, at most")
        ->capture_default_str()
        ->check(above_zero());
    app.add_option("--anchor-rule", anchor_rule,
                   "pair: anchor and next token supervised; start: whole blocks only")
        ->check(one_of(dflash::anchor_rules))
        ->capture_default_str();
    app.add_option("--loss-type", loss_type,
                   "what later slots weigh: dflash by --loss-decay-gamma, dpace by the draft's "
                   "confidence, the others by one of its two factors")
        ->check(one_of(dflash::loss_types))
        ->capture_default_str();
    app.add_option("--loss-decay-gamma", loss.gamma,
                   "decay of later slots (7 for blocks of 16, 4 for 8); 0: none")
        ->capture_default_str();
    app.add_option("--dpace-alpha", loss.dpace_alpha,
                   "of dpace: 0 trusts the draft's confidence as it is, 1 ignores it")
        ->capture_default_str()
        ->check(from_zero_to_one());
    app.add_option("--learning-rate", learning_rate, "of AdamW, after the warm-up")
        ->capture_default_str()
        ->check(not_below_zero());
    app.add_option("--lr-scheduler", lr_scheduler,
                   "after the warm-up; wsd: constant, then a decay to 0")
        ->check(one_of(dflash::Schedule::kinds))
        ->capture_default_str();
    app.add_option("--warmup-ratio", warmup_ratio, "share of the steps in which the rate grows")
        ->capture_default_str()
        ->check(from_zero_to_one());
    app.add_option("--decay-ratio", decay_ratio, "share of the steps in wsd's final decay")
        ->capture_default_str()
        ->check(from_zero_to_one());
    app.add_option("--max-grad-norm", max_grad_norm, "0: no clipping")
        ->capture_default_str()
        ->check(not_below_zero());
    app.add_option("--weight-decay", weight_decay, "of AdamW, apart from the gradient")
        ->capture_default_str()
        ->check(not_below_zero());
    app.add_option("--num-epochs", num_epochs, "passes over the data")
        ->capture_default_str()
        ->check(above_zero());
    app.add_option("--max-steps", max_steps, "optimizer steps; overrides --num-epochs")
        ->check(above_zero());
    app.add_option("--batch-size", batch_size, "samples per micro-step over all replicas")
        ->capture_default_str()
        ->check(above_zero());
    app.add_option("--accumulation-steps", accumulation_steps,
                   "micro-steps whose gradients make an optimizer step")
        ->capture_default_str()
        ->check(above_zero());
    app.add_option("--log-interval", log_interval, "steps")
        ->capture_default_str()
        ->check(above_zero());
    app.add_option("--save-interval", save_interval, "steps; 0: at the end only")
        ->capture_default_str()
        ->check(not_below_zero());
    app.add_option("--max-checkpoints", max_checkpoints, "keep the newest ones; 0: all")
        ->capture_default_str()
        ->check(not_below_zero());
    app.add_option("--export-dtype", export_dtype, "of model.safetensors")
        ->check(one_of(dflash::export_dtypes))
        ->capture_default_str();
    app.add_option("--seed", seed, "of the draft's first weights, anchors and the samples' order")
        ->capture_default_str();
    app.add_option("--threads", threads, Device::threads_help)
        ->capture_default_str()
        ->check(not_below_zero());
    device.add_to(app);
    device.add_head_to(app);
    app.add_option("--sp-ulysses-size", layout.ulysses, "ranks that share a batch by heads")
        ->capture_default_str()
        ->check(above_zero());
    app.add_option("--sp-ring-size", layout.ring, "ranks that share a batch by context stripes")
        ->capture_default_str()
        ->check(above_zero());
    app.add_option("--tp-size", tensor_parallel,
                   "ranks that hold the target together: its embedding and head, and online all")
        ->capture_default_str()
        ->check(above_zero());
    app.add_flag("--plan", plan, "print memory, bytes sent and read per step, and end");
    app.add_flag("--resume", resume, "go on from the newest checkpoint in --output-dir, if any");
    app.add_flag("--save-initial", save_initial, "a checkpoint before the first step as well");
  }

  /// The draft's config, if there is one: what was given, or that of the draft to start from.
  const std::filesystem::path& given_config() const {
    return draft_config_path.empty() ? draft_checkpoint_path : draft_config_path;
  }

  /// The layers that an online trainer captures: the draft config's, or as many as it has layers.
  std::vector<index_t> layer_ids(index_t target_layers) const {
    return given_config().empty()
               ? dflash::default_target_layer_ids(target_layers, num_draft_layers.value_or(1))
               : dflash::DraftConfig::read(given_config()).target_layer_ids;
  }

  /// The draft that is trained, on features of the given layers.
  dflash::DraftConfig draft_config(const std::vector<index_t>& layer_ids,
                                   index_t data_block_size) const {
    const auto target_file = target_model_path / "config.json";
    const auto target = dflash::read_json(target_file);
    const std::string given = given_config().string();
    dflash::DraftConfig draft;
    if (given.empty()) {
      draft = dflash::DraftConfig::for_target(target, num_draft_layers.value_or(1),
                                              block_size > 0 ? block_size : data_block_size,
                                              target_file.string());
      draft.target_layer_ids = layer_ids;
    } else {
      draft = dflash::DraftConfig::read(given);
      if (num_draft_layers && *num_draft_layers != draft.layers)
        throw dflash::Error("--num-draft-layers is " + std::to_string(*num_draft_layers) +
                            ", but the draft of " + given + " has " + std::to_string(draft.layers));
      if (block_size > 0) draft.block_size = block_size;
      if (draft.target_layer_ids != layer_ids)
        throw dflash::Error(given + ": target_layer_ids is " +
                            nlohmann::json(draft.target_layer_ids).dump() +
                            ", but the features are of layers " + nlohmann::json(layer_ids).dump());
    }
    if (draft.block_size < 2) throw dflash::Error("--block-size must be at least 2");
    const auto expect_target_has = [&](const char* theirs, const char* ours, index_t value) {
      const auto wanted = dflash::required<index_t>(target, theirs, target_file);
      if (value != wanted)
        throw dflash::Error(given + ": " + ours + " is " + std::to_string(value) +
                            ", but the target's " + theirs + " is " + std::to_string(wanted));
    };
    expect_target_has("hidden_size", "hidden_size", draft.shape.hidden);
    expect_target_has("vocab_size", "vocab_size", draft.vocabulary);
    expect_target_has("num_hidden_layers", "num_target_layers", draft.target_layers);
    draft.mask_token = mask_token(draft);
    return draft;
  }

  dflash::BlockOptions blocks(const dflash::DraftConfig& draft) const {
    return {.count = num_anchors,
            .size = draft.block_size,
            .rule = dflash::anchor_rules.named(anchor_rule)};
  }

  dflash::LossOptions loss_options() const {
    dflash::LossOptions options = loss;
    options.type = dflash::loss_types.named(loss_type);
    options.check();
    return options;
  }

  index_t steps(index_t samples) const {
    if (max_steps > 0) return max_steps;
    const index_t each = batch_size * accumulation_steps;
    return (num_epochs * samples + each - 1) / each;
  }

  dflash::Schedule schedule(index_t samples) const {
    const index_t total = steps(samples);
    dflash::Schedule schedule{.kind = dflash::Schedule::kinds.named(lr_scheduler),
                              .peak = learning_rate,
                              .warmup = dflash::Schedule::warmup_steps(warmup_ratio, total),
                              .total = total,
                              .decay_steps = index_t(decay_ratio * double(total))};
    if (schedule.kind != dflash::Schedule::Kind::wsd) schedule.decay_steps = 0;
    schedule.check();
    return schedule;
  }

  /// What a step takes, for samples of that many tokens, before anything is loaded.
  dflash::TrainingPlan training_plan(const dflash::DraftConfig& draft, int ranks,
                                     index_t sample_tokens, index_t stored_bytes) const {
    if (ranks % layout.ranks() != 0)
      throw dflash::Error("there are " + std::to_string(ranks) + " ranks, which the " +
                          std::to_string(layout.ulysses) + " (--sp-ulysses-size) x " +
                          std::to_string(layout.ring) +
                          " (--sp-ring-size) of a sequence group do not divide");
    if (layout.ulysses > draft.shape.heads)
      throw dflash::Error("--sp-ulysses-size " + std::to_string(layout.ulysses) +
                          " is larger than the draft's number of query heads, " +
                          std::to_string(draft.shape.heads));
    if (ranks % tensor_parallel != 0)
      throw dflash::Error("there are " + std::to_string(ranks) +
                          " ranks, which the target group's " + std::to_string(tensor_parallel) +
                          " (--tp-size) do not divide");
    const auto target_file = target_model_path / "config.json";
    const index_t replicas = ranks / layout.ranks();
    return {.config = draft,
            .layout = layout,
            .replicas = replicas,
            .micro_steps = accumulation_steps,
            .samples = (batch_size + replicas - 1) / replicas,
            .sample_tokens = sample_tokens,
            .sample_blocks = std::min(num_anchors, sample_tokens),
            .bytes = dflash::NumberBytes::of<Device::Backend>(),
            .stored_bytes = stored_bytes,
            .chunk_rows = loss.rows_at_once<Device::Backend>(),
            .tensor_parallel = tensor_parallel,
            .tied_head = dflash::has_tied_head(target_file),
            .float8_head = device.float8_head(),
            .bfloat16_target =
                plan && dflash::KeepsBfloat16Rows<Device::Backend> &&
                dflash::is_bfloat16(dflash::WeightsFolder(target_model_path), keys.embedding),
            .bfloat16_features = dflash::KeepsBfloat16Rows<Device::Backend> &&
                                 stored_bytes == sizeof(dflash::bfloat16),
            .bfloat16_products = device.products_round()};
  }

  dflash::AdamWOptions adamw() const {
    return {.decay = weight_decay, .max_grad_norm = max_grad_norm};
  }

  index_t step_samples() const { return batch_size * accumulation_steps; }

  bool saves_after(index_t step, index_t total) const {
    return step + 1 == total || (save_interval > 0 && (step + 1) % save_interval == 0);
  }

  /// What a resumed run must agree on with the run before.
  nlohmann::json contract(const dflash::DraftConfig& draft, index_t samples,
                          const std::string& data) const {
    nlohmann::json contract{{"draft", draft.to_json("float32")},
                            {"num_anchors", num_anchors},
                            {"anchor_rule", anchor_rule},
                            {"loss_type", loss_type},
                            {"loss_decay_gamma", loss.gamma},
                            {"dpace_alpha", loss.dpace_alpha},
                            {"learning_rate", learning_rate},
                            {"lr_scheduler", lr_scheduler},
                            {"warmup_ratio", warmup_ratio},
                            {"decay_ratio", decay_ratio},
                            {"max_grad_norm", max_grad_norm},
                            {"weight_decay", weight_decay},
                            {"total_steps", steps(samples)},
                            {"batch_size", batch_size},
                            {"accumulation_steps", accumulation_steps},
                            {"seed", seed},
                            {"target", dflash::target_fingerprint(target_model_path)},
                            {"precision", device.precision},
                            {"data", data}};
    if (device.float8_head()) contract["head_precision"] = device.head_precision;
    return contract;
  }

 private:
  std::int32_t mask_token(const dflash::DraftConfig& draft) const {
    dflash::MaskTokenSources from{.given = mask_token_id, .vocabulary = draft.vocabulary};
    from.draft_config = draft.mask_token;
    if (std::filesystem::exists(target_model_path / "tokenizer.json")) {
      const dflash::Tokenizer tokenizer(target_model_path);
      from.tokenizer_mask = tokenizer.special_token_id("mask_token");
      from.tokenizer_size = tokenizer.id_limit();
      from.pad = tokenizer.special_token_id("pad_token");
      from.eos = tokenizer.special_token_id("eos_token");
      from.unknown = tokenizer.special_token_id("unk_token");
    }
    return dflash::resolve_mask_token(from);
  }
};

}  // namespace examples
