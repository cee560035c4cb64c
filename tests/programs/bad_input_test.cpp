// Files that are broken, missing or do not fit together: one sentence that names what is wrong.

#include "programs/programs.hpp"

namespace bad_input_test {

/// Where a case may break a copy of the tiny target.
struct BrokenTarget {
  TemporaryFolder folder;
  std::filesystem::path target = folder / "tiny-target", store = folder / "store";
  std::filesystem::path config = target / "config.json", weights = target / "model.safetensors",
                        tokenizer = target / "tokenizer.json";

  BrokenTarget() { copy_folder(tiny_target, target); }

  std::string capture_failure(const Arguments& more = {}) const {
    return failure_of("prepare_hidden_states",
                      capture_flags(store) +
                          Arguments{"--target-model-path", target, "--num-samples", "4"} + more);
  }
};

const std::string some_weight = "model.layers.3.self_attn.q_proj.weight";

TEST_CASE("a target that is not there or lacks a file is named") {
  const TemporaryFolder folder;
  const auto none = folder / "none";
  check_named(failure_of("prepare_hidden_states",
                         capture_flags(folder / "store") + Arguments{"--target-model-path", none}),
              {(none / "config.json").string()});
  for (const std::string file : {"config.json", "model.safetensors", "tokenizer.json"}) {
    const BrokenTarget broken;
    std::filesystem::remove(broken.target / file);
    const auto why = broken.capture_failure();
    check_named(why, {broken.target.string(), file});
  }
}

TEST_CASE("a config with a missing, contradictory or unknown field is named with the field") {
  struct Case {
    std::string field;
    nlohmann::json value;  // null: missing
    std::vector<std::string> named;
  };
  const Case cases[] = {
      {"hidden_size", nullptr, {"config.json", "hidden_size"}},
      {"num_hidden_layers", nullptr, {"config.json", "num_hidden_layers"}},
      {"vocab_size", nullptr, {"config.json", "vocab_size"}},
      {"rms_norm_eps", nullptr, {"config.json", "rms_norm_eps"}},
      {"model_type", nullptr, {"config.json", "model_type"}},
      {"model_type", "gpt2", {"config.json", "model_type", "gpt2"}},
      {"hidden_size", "wide", {"config.json", "hidden_size", "wide"}},
      {"num_hidden_layers", 9, {"config.json", "layer_types", "9"}},
      {"num_hidden_layers", -1, {"config.json", "num_hidden_layers", "-1"}},
      {"num_key_value_heads", 3, {"config.json", "num_key_value_heads", "3"}},
      // Head sizes that do not match the weights.
      {"head_dim", 16, {"model.safetensors", "self_attn", "64"}},
      {"num_attention_heads", 8, {"model.safetensors", "self_attn.q_proj", "256"}},
      {"num_key_value_heads", 4, {"model.safetensors", "self_attn.k_proj", "128"}},
      {"head_dim", 33, {"config.json", "head_dim", "33"}},
      // Sizes that no memory could hold.
      {"hidden_size", 2147483647, {"config.json", "hidden_size", "2147483647"}},
      {"hidden_size", 320, {"model.safetensors", "320"}},
      {"vocab_size", 2147483647, {"model.safetensors", "2147483647"}},
      {"intermediate_size", 2147483647, {"model.safetensors", "2147483647"}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.field);
    const BrokenTarget broken;
    change_json(broken.config, [&](nlohmann::json& config) {
      config.erase(c.field);
      if (!c.value.is_null()) config[c.field] = c.value;
    });
    check_named(broken.capture_failure(), c.named);
    if (c.field != "head_dim") continue;
    // The user mends the config and runs the same command again.
    put(broken.config, content_of(tiny_target / "config.json"));
    succeed("prepare_hidden_states",
            capture_flags(broken.store) +
                Arguments{"--target-model-path", broken.target, "--num-samples", "4"});
  }
  const BrokenTarget broken;
  put(broken.config, "{\"hidden_size\": 160,\n \"model_type\" \"qwen3\"}");
  check_named(broken.capture_failure(), {broken.config.string() + ":2:", "JSON"});
}

TEST_CASE("truncated, oversized and lying weights are named") {
  const std::string whole = content_of(tiny_target / "model.safetensors");
  const auto end = std::int64_t(whole.size());
  for (const std::int64_t size :
       {std::int64_t(0), std::int64_t(7), std::int64_t(8), std::int64_t(500), end / 2, end - 1}) {
    const BrokenTarget broken;
    CAPTURE(size);
    put(broken.weights, whole.substr(0, std::size_t(size)));
    check_named(broken.capture_failure(), {broken.weights.string()});
  }
  for (const std::uint64_t length :
       {std::uint64_t(end), std::uint64_t(1) << 40, ~std::uint64_t(0)}) {
    const BrokenTarget broken;
    CAPTURE(length);
    put(broken.weights, std::string(reinterpret_cast<const char*>(&length), sizeof length) +
                            whole.substr(sizeof length));
    check_named(broken.capture_failure(), {broken.weights.string()});
  }
  {
    const BrokenTarget broken;
    put(broken.weights, whole + "more");
    check_named(broken.capture_failure(), {broken.weights.string()});
  }
  using Change = void (*)(nlohmann::json&);
  const Change lies[] = {
      [](nlohmann::json& tensor) { tensor["shape"][0] = 1 << 20; },
      [](nlohmann::json& tensor) { tensor["shape"][0] = -128; },
      [](nlohmann::json& tensor) {
        tensor["shape"] = {1LL << 62, 4};
      },
      [](nlohmann::json& tensor) { tensor["dtype"] = "F32"; },
      [](nlohmann::json& tensor) { tensor["dtype"] = "X99"; },
      [](nlohmann::json& tensor) { tensor["data_offsets"][1] = 1LL << 50; },
      [](nlohmann::json& tensor) { tensor["data_offsets"][0] = -8; },
      [](nlohmann::json& tensor) { tensor.erase("shape"); },
      [](nlohmann::json& tensor) { tensor = "a tensor"; },
      [](nlohmann::json& tensor) {
        tensor["shape"] = {160, 128};
      },
  };
  for (const Change lie : lies) {
    const BrokenTarget broken;
    change_safetensors_header(broken.weights,
                              [&](nlohmann::json& header) { lie(header.at(some_weight)); });
    check_named(broken.capture_failure(), {broken.weights.string(), some_weight});
  }
  {
    const BrokenTarget broken;
    change_safetensors_header(broken.weights, [&](nlohmann::json& header) {
      header.at(some_weight)["data_offsets"] = {0, 40960};
    });
    check_named(broken.capture_failure(), {broken.weights.string(), "tensors overlap"});
  }
  const BrokenTarget broken;
  change_safetensors_header(broken.weights, [&](nlohmann::json& header) {
    header["model.layers.3.self_attn.o_proj.wrong"] = header[some_weight];
    header.erase(some_weight);
  });
  check_named(broken.capture_failure(), {some_weight});
}

TEST_CASE("a tokenizer that is broken or of another kind is named") {
  {
    const BrokenTarget broken;
    change_json(broken.tokenizer, [](nlohmann::json& t) { t["model"]["type"] = "Unigram"; });
    check_named(broken.capture_failure(), {broken.tokenizer.string(), "Unigram"});
  }
  {
    const BrokenTarget broken;
    change_json(broken.tokenizer, [](nlohmann::json& t) { t["model"].erase("vocab"); });
    check_named(broken.capture_failure(), {broken.tokenizer.string(), "vocab"});
  }
  {
    const BrokenTarget broken;
    const auto text = content_of(broken.tokenizer);
    put(broken.tokenizer, text.substr(0, text.size() / 2));
    check_named(broken.capture_failure(), {broken.tokenizer.string()});
  }
  {
    const BrokenTarget broken;
    change_json(broken.target / "tokenizer_config.json",
                [](nlohmann::json& t) { t["chat_template"] = "{% for m in messages %}"; });
    check_named(broken.capture_failure(), {broken.target.string(), "chat template"});
  }
}

TEST_CASE("a broken line of the data is named with its file and number") {
  const TemporaryFolder folder;
  const auto data = folder / "data.jsonl";
  const auto lines = lines_of(content_of(tiny_prompts));
  const auto failure = [&](const std::string& line, const std::string& program) {
    put(data, lines[0] + "\n" + lines[1] + "\n" + line + "\n" + lines[2] + "\n");
    return program == "train_online"
               ? failure_of(program,
                            train_flags(folder / "draft") + Arguments{"--train-data-path", data})
               : failure_of(program,
                            capture_flags(folder / "store") + Arguments{"--data-path", data});
  };
  const std::string broken[] = {
      lines[3].substr(0, lines[3].size() / 2),
      "[1, 2, 3]",
      "{}",
      "{\"conversations\": 7}",
      "{\"conversations\": [{\"role\": \"user\"",
      "{\"conversations\": [7]}",
      "{\"input_ids\": [1, 2, 3], \"loss_mask\": [0, 1]}",
      "{\"input_ids\": [1, 2048], \"loss_mask\": [0, 1]}",
      "{\"input_ids\": [1, -2], \"loss_mask\": [0, 1]}",
      "{\"input_ids\": [1, 2], \"loss_mask\": [0, 2]}",
      "{\"text\": 3}",
      "\xff\xfe",
  };
  for (const std::string& line : broken) {
    CAPTURE(line);
    for (const std::string program : {"prepare_hidden_states", "train_online"})
      check_named(failure(line, program), {data.string() + ", line 3: "});
  }
  check_named(failure_of("prepare_hidden_states", capture_flags(folder / "store") +
                                                      Arguments{"--data-path", folder / "none"}),
              {(folder / "none").string()});
  put(data, "");
  check_named(failure_of("prepare_hidden_states",
                         capture_flags(folder / "store") + Arguments{"--data-path", data}),
              {data.string(), "no sample"});
}

TEST_CASE("a file that cannot be read ends a program that skips bad lines") {
  const TemporaryFolder folder;
  check_named(failure_of("prepare_hidden_states",
                         capture_flags(folder / "store") +
                             Arguments{"--data-path", "/proc/self/mem", "--skip-bad-lines"}),
              {"cannot read /proc/self/mem"});
}

TEST_CASE("data without anything to train on are an error") {
  const TemporaryFolder folder;
  const auto data = folder / "data.jsonl";
  put(data,
      "{\"input_ids\": [1, 2, 3, 4], \"loss_mask\": [1, 0, 1, 0]}\n"
      "{\"conversations\": [{\"role\": \"user\", \"content\": \"Hello?\"}]}\n");
  const Arguments filter{"--sample-filter", "adjacent-pair"};
  check_named(failure_of("prepare_hidden_states",
                         capture_flags(folder / "store") + filter + Arguments{"--data-path", data}),
              {data.string(), "no sample"});
  check_named(failure_of("train_online", train_flags(folder / "draft") + filter +
                                             Arguments{"--train-data-path", data}),
              {data.string(), "no sample"});
  CHECK_FALSE(std::filesystem::exists(folder / "store"));
}

TEST_CASE("layers that the target does not have are named") {
  const BrokenTarget good;
  check_named(good.capture_failure({"--target-layer-ids", "1", "99"}), {"layer 99", "0 to 7"});
  check_named(good.capture_failure({"--target-layer-ids", "-1"}), {"layer -1", "0 to 7"});
  put(good.folder / "draft.json", content_of(tiny_draft_config));
  change_json(good.folder / "draft.json", [](nlohmann::json& config) {
    config["dflash_config"]["target_layer_ids"] = {1, 8};
  });
  check_named(good.capture_failure({"--draft-config-path", good.folder / "draft.json"}),
              {(good.folder / "draft.json").string(), "layer 8"});
  CHECK_FALSE(std::filesystem::exists(good.store));
}

TEST_CASE("stores, targets and drafts that do not fit together are named with both values") {
  const BrokenTarget other;
  const auto store = other.store;
  succeed("prepare_hidden_states", capture_flags(store) + Arguments{"--num-samples", "4"});
  const auto train = train_flags(other.folder / "draft") +
                     Arguments{"--train-hidden-states-path", store, "--max-steps", "1"};

  std::string weights = content_of(other.weights);
  weights[weights.size() - 100] = char(weights[weights.size() - 100] ^ 1);
  put(other.weights, weights);
  check_named(failure_of("train_offline", train + Arguments{"--target-model-path", other.target}),
              {(store / "store.json").string(), "target_fingerprint"});
  check_named(other.capture_failure(), {(store / "store.json").string(), "target_fingerprint"});

  struct Case {
    std::string field;
    nlohmann::json value;
    std::vector<std::string> named;
  };
  const auto draft = other.folder / "draft.json";
  const Case cases[] = {
      {"target_layer_ids", {1, 2, 3}, {"target_layer_ids", "[1,2,3]", "[1,2,3,4,5]"}},
      {"mask_token_id", 2048, {"mask_token_id", "2048"}},
      {"mask_token_id", -1, {"mask_token_id", "-1"}},
      {"hidden_size", 128, {"hidden_size", "128", "160"}},
      {"vocab_size", 4096, {"vocab_size", "4096", "2048"}},
      {"num_target_layers", 12, {"num_target_layers", "12", "8"}},
      {"num_hidden_layers", nullptr, {"num_hidden_layers"}},
      {"block_size", nullptr, {"block_size"}},
      {"block_size", 1, {"block_size", "1"}},
      {"head_dim", 31, {"head_dim", "31"}},
      {"num_key_value_heads", 3, {"num_key_value_heads", "3"}},
      {"hidden_act", "relu", {"hidden_act", "relu"}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.field);
    put(draft, content_of(tiny_draft_config));
    change_json(draft, [&](nlohmann::json& config) {
      auto& place = config["dflash_config"].contains(c.field) ? config["dflash_config"] : config;
      place.erase(c.field);
      if (!c.value.is_null()) place[c.field] = c.value;
    });
    const auto why = failure_of("train_offline", train + Arguments{"--draft-config-path", draft});
    check_named(why, {draft.string()});
    check_named(why, c.named);
  }
  // A vocabulary of the draft's own would let its mask token lie outside the target's embedding.
  change_json(draft, [](nlohmann::json& config) {
    config = nlohmann::json::parse(content_of(tiny_draft_config));
    config["vocab_size"] = 1 << 20;
    config["dflash_config"]["mask_token_id"] = (1 << 20) - 1;
  });
  for (const std::string program : {"train_offline", "train_online"})
    check_named(failure_of(program, train_flags(other.folder / "draft") +
                                        (program == "train_offline"
                                             ? Arguments{"--train-hidden-states-path", store}
                                             : Arguments{"--train-data-path", tiny_prompts}) +
                                        Arguments{"--draft-config-path", draft}),
                {draft.string(), "vocab_size"});
}

TEST_CASE("a damaged store is named with the file and the sample") {
  const TemporaryFolder folder;
  const auto store = folder / "store", shard = store / "shard-000000.safetensors";
  succeed("prepare_hidden_states", capture_flags(store) + Arguments{"--num-samples", "4"});
  const auto failure = [&] {
    return failure_of("train_offline",
                      train_flags(folder / "draft") +
                          Arguments{"--train-hidden-states-path", store, "--batch-size", "4"});
  };
  check_named(
      failure_of("train_offline", train_flags(folder / "draft") +
                                      Arguments{"--train-hidden-states-path", folder / "none"}),
      {(folder / "none" / "store.json").string()});
  const auto whole = content_of(shard);
  put(shard, whole.substr(0, whole.size() - 1));
  check_named(failure(), {shard.string()});
  std::uint64_t length = 0;
  std::memcpy(&length, whole.data(), sizeof length);
  const auto features = sizeof length + length +
                        safetensors_header(shard)["features"]["data_offsets"][0].get<std::size_t>();
  auto flipped = whole;
  char& byte = flipped[features + 10 * 5 * 160 * sizeof(float)];
  byte = char(byte ^ 4);
  put(shard, flipped);
  check_named(failure(), {shard.string(), "sample 0 (\"train-0", "row 10"});
  const auto skip =
      train_flags(folder / "skipped") +
      Arguments{"--train-hidden-states-path", store, "--max-steps", "2", "--skip-corrupt"};
  const auto skipped = succeed("train_offline", skip);
  CHECK(mentions(skipped.out, "samples: 3 sound, 1 left out"));
  CHECK(mentions(skipped.err, "row 10"));
  put(shard, whole);
  check_named(failure_of("train_offline", skip + "--resume"), {"left_out"});
  put(shard, flipped);
  std::filesystem::remove(shard);
  check_named(failure(), {shard.string()});
  put(shard, whole);
  change_json(store / "store.json", [](nlohmann::json& json) { json.erase("layer_ids"); });
  check_named(failure(), {(store / "store.json").string(), "layer_ids"});
}

TEST_CASE("drafts and prompts that cannot be evaluated are named") {
  const TemporaryFolder folder;
  const auto output = folder / "draft";
  succeed("train_online",
          train_flags(output) + Arguments{"--train-data-path", tiny_prompts, "--num-samples", "4",
                                          "--max-steps", "1"});
  const auto draft = output / "step-000001";
  const auto failure = [&](const Arguments& more) {
    return failure_of("evaluate",
                      Arguments{"--target-model-path", tiny_target, "--draft-model-path", draft,
                                "--data-path", tiny_target / "prompts-eval.jsonl", "--limit", "2",
                                "--max-new-tokens", "8", "--json"} +
                          more);
  };
  check_named(failure({"--draft-model-path", folder / "none"}), {(folder / "none").string()});
  check_named(failure({"--mask-token-id", "2048"}), {"--mask-token-id 2048", "2048"});
  check_named(failure({"--data-path", folder / "none"}), {(folder / "none").string()});
  const auto data = folder / "data.jsonl";
  put(data, "\n");
  check_named(failure({"--data-path", data}), {data.string(), "no prompts"});
  put(data, "{\"conversations\": [{\"role\": \"user\", \"content\": \"Hello?\"}]}\n{\n");
  check_named(failure({"--data-path", data}), {data.string() + ", line 2: "});
  put(data, "{\"text\": \"Hello?\"}\n");
  check_named(failure({"--data-path", data}), {data.string() + ", line 1: "});
  put(data, "\n{\"conversations\": [{\"role\": \"user\", \"content\": [7]}]}\n");
  check_named(failure({"--data-path", data}), {data.string() + ", line 2: "});

  const auto golden = std::filesystem::path(DFLASH_TEST_DATA) / "golden";
  check_named(failure({"--draft-model-path", golden / "generate_qwen3_k6_draft"}),
              {(golden / "generate_qwen3_k6_draft").string(), "num_target_layers is 6", "8"});
  const auto config = content_of(draft / "config.json"),
             weights = content_of(draft / "model.safetensors");
  change_json(draft / "config.json", [](nlohmann::json& json) {
    json["num_hidden_layers"] = 3;
    json.erase("layer_types");
  });
  check_named(failure({}), {draft.string(), "layers.2."});
  put(draft / "config.json", config);
  change_json(draft / "config.json", [](nlohmann::json& json) { json["head_dim"] = 16; });
  check_named(failure({}), {(draft / "model.safetensors").string(), "self_attn"});
  put(draft / "config.json", config);
  put(draft / "model.safetensors", weights.substr(0, weights.size() / 2));
  check_named(failure({}), {(draft / "model.safetensors").string()});
}

}  // namespace bad_input_test
