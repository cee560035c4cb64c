#include "dflash/model/draft_config.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <optional>

namespace draft_config_test {

using namespace dflash;

nlohmann::json published() {
  return nlohmann::json::parse(R"({"architectures": ["DFlashDraftModel"],
    "auto_map": {"AutoModel": "dflash.DFlashDraftModel"}, "attention_bias": false, "block_size": 16,
    "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33],
    "attention_backend": "usp"}, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 12288, "max_position_embeddings": 40960,
    "model_type": "qwen3", "num_attention_heads": 32, "num_hidden_layers": 5,
    "num_key_value_heads": 8, "num_target_layers": 36, "rms_norm_eps": 1e-06, "rope_scaling": null,
    "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": false,
    "torch_dtype": "bfloat16", "vocab_size": 151936})");
}

std::string error_of(const std::function<void(nlohmann::json&)>& change) {
  nlohmann::json config = published();
  change(config);
  try {
    DraftConfig::from_json(config, "draft/config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("DraftConfig reads a published config and writes it back as one") {
  const DraftConfig draft = DraftConfig::from_json(published(), "config.json");
  CHECK(draft.shape.hidden == 4096);
  CHECK(draft.shape.head_dim == 128);
  CHECK(draft.layers == 5);
  CHECK(draft.feature_width() == 5 * 4096);
  CHECK(draft.mask_token == 151669);
  CHECK(draft.rope.theta == 1e6);
  const nlohmann::json written = draft.to_json("float32");
  CHECK(written["architectures"] == nlohmann::json{"DFlashDraftModel"});
  CHECK(written["dtype"] == "float32");
  CHECK(!written.contains("auto_map"));
  CHECK(!written["dflash_config"].contains("attention_backend"));
  CHECK(written["max_position_embeddings"] == 40960);
  const DraftConfig again = DraftConfig::from_json(written, "config.json");
  CHECK(again.target_layer_ids == draft.target_layer_ids);
  CHECK(again.to_json("float32") == written);
}

TEST_CASE("DraftConfig falls back as the reference does") {
  nlohmann::json config = published();
  config.erase("dflash_config");
  config.erase("head_dim");
  config["use_sliding_window"] = true;
  config["sliding_window"] = 2048;
  config["max_window_layers"] = 3;
  const DraftConfig draft = DraftConfig::from_json(config, "config.json");
  CHECK(draft.target_layer_ids == std::vector<index_t>{1, 9, 17, 25, 33});
  CHECK(draft.shape.head_dim == 128);
  CHECK(!draft.mask_token);
  CHECK(draft.layer_window(2) == 0);
  CHECK(draft.layer_window(3) == 2048);
  config["max_window_layers"] = -1;
  CHECK(DraftConfig::from_json(config, "config.json").layer_window(0) == 2048);
  config["use_sliding_window"] = nullptr;
  CHECK(DraftConfig::from_json(config, "config.json").layer_window(3) == 0);
}

TEST_CASE("A draft config's errors name the file, the field and the value") {
  const auto says = [](const std::string& text, const std::string& part) {
    CAPTURE(text);
    CHECK(text.find("draft/config.json") != std::string::npos);
    CHECK(text.find(part) != std::string::npos);
    CHECK(text.find('\n') == std::string::npos);
  };
  for (const char* field : {"hidden_size", "intermediate_size", "num_attention_heads",
                            "num_hidden_layers", "block_size", "vocab_size", "num_target_layers"}) {
    says(error_of([&](auto& c) { c.erase(field); }), field);
    says(error_of([&](auto& c) { c[field] = "many"; }), field);
    says(error_of([&](auto& c) { c[field] = -3; }), field);
  }
  says(error_of([](auto& c) { c["num_key_value_heads"] = 5; }), "multiple");
  says(error_of([](auto& c) { c["head_dim"] = 7; }), "head_dim");
  says(error_of([](auto& c) { c["hidden_act"] = "gelu"; }), "gelu");
  says(error_of([](auto& c) { c["dflash_config"]["target_layer_ids"] = {1, 36}; }), "layer 36");
  says(error_of([](auto& c) { c["dflash_config"]["mask_token_id"] = 151936; }), "151936");
  says(error_of([](auto& c) { c["block_size"] = 1; }), "at least 2");
  says(error_of([](auto& c) { c["layer_types"] = {"full_attention"}; }), "layer_types");
  says(error_of(
           [](auto& c) { c["layer_types"] = std::vector<std::string>(5, "sliding_attention"); }),
       "sliding_window");
  for (const char* field : {"use_sliding_window", "max_window_layers"})
    says(error_of([&](auto& c) {
           c.erase("layer_types");
           c["use_sliding_window"] = true;
           c[field] = "some";
         }),
         field);
  says(error_of([](auto& c) {
         c["rope_scaling"] = {{"rope_type", "longrope"}, {"factor", 2}};
       }),
       "longrope");
}

TEST_CASE("The mask token is looked for in the reference's order") {
  MaskTokenSources from{.given = {},
                        .draft_config = {},
                        .tokenizer_mask = {},
                        .tokenizer_size = 90,
                        .pad = 1,
                        .eos = 2,
                        .unknown = 3,
                        .vocabulary = 100};
  CHECK(resolve_mask_token(from) == 90);
  from.tokenizer_size = 100;  // no unused row
  CHECK(resolve_mask_token(from) == 1);
  from.pad = {};
  CHECK(resolve_mask_token(from) == 2);
  from.eos = {};
  CHECK(resolve_mask_token(from) == 3);
  from.tokenizer_mask = 7;
  CHECK(resolve_mask_token(from) == 7);
  from.draft_config = 8;
  CHECK(resolve_mask_token(from) == 8);
  from.given = 9;
  CHECK(resolve_mask_token(from) == 9);
  from.given = 100;
  CHECK_THROWS_AS(resolve_mask_token(from), Error);
}

TEST_CASE("A draft config made for a target has its widths and the formula's layers") {
  const nlohmann::json target{{"hidden_size", 160},       {"intermediate_size", 416},
                              {"num_hidden_layers", 14},  {"num_attention_heads", 4},
                              {"num_key_value_heads", 2}, {"head_dim", 32},
                              {"vocab_size", 2048},       {"rms_norm_eps", 1e-5}};
  const DraftConfig draft = DraftConfig::for_target(target, 5, 8, "config.json");
  CHECK(draft.target_layer_ids == std::vector<index_t>{1, 4, 6, 8, 11});
  CHECK(draft.block_size == 8);
  CHECK(draft.shape.eps == 1e-5);
  CHECK(draft.target_layers == 14);
}

}  // namespace draft_config_test
