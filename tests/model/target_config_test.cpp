#include "dflash/model/target_config.hpp"

#include <doctest/doctest.h>

#include <fstream>

namespace target_config_test {

using dflash::TargetConfig;
using nlohmann::json;
namespace fs = std::filesystem;

const fs::path data = DFLASH_TEST_DATA;

json valid(const std::string& type = "qwen3") {
  const std::string architecture = type == "qwen3"   ? "Qwen3ForCausalLM"
                                   : type == "qwen2" ? "Qwen2ForCausalLM"
                                                     : "LlamaForCausalLM";
  return {{"model_type", type},         {"architectures", {architecture}},
          {"hidden_size", 32},          {"intermediate_size", 48},
          {"num_hidden_layers", 4},     {"num_attention_heads", 4},
          {"num_key_value_heads", 2},   {"vocab_size", 64},
          {"rms_norm_eps", 1e-6},       {"rope_theta", 1e4},
          {"tie_word_embeddings", true}};
}

TargetConfig read(const json& config) { return TargetConfig::from_json(config, "a/config.json"); }

std::string error_of(const json& config) {
  try {
    read(config);
  } catch (const dflash::Error& error) {
    return error.what();
  }
  return "";
}

void check_names(const std::string& text, std::initializer_list<const char*> parts) {
  INFO(text);
  CHECK(text.find('\n') == std::string::npos);
  for (const char* part : parts) CHECK(text.find(part) != std::string::npos);
}

TEST_CASE("the fields of published configs are read") {
  const auto tiny = TargetConfig::read(fs::path(DFLASH_EXAMPLE_DATA) / "tiny-target");
  CHECK(tiny.model_type == "qwen3");
  CHECK(tiny.hidden == 160);
  CHECK(tiny.intermediate == 416);
  CHECK(tiny.layers == 8);
  CHECK(tiny.heads == 4);
  CHECK(tiny.kv_heads == 2);
  CHECK(tiny.head_dim == 32);
  CHECK(tiny.vocabulary == 2048);
  CHECK(tiny.positions == 1024);
  CHECK(tiny.eps == 1e-6);
  CHECK(tiny.rope.theta == 10000);
  CHECK(tiny.tied_head);
  CHECK(tiny.head_norms);
  CHECK(!tiny.qkv_bias);
  CHECK(tiny.dtype == "bfloat16");
  CHECK(tiny.windows == std::vector<dflash::index_t>(8, 0));

  const auto llama = TargetConfig::read(data / "golden" / "target_llama31_rope");
  CHECK(llama.rope.scaling == dflash::RopeParameters::Scaling::llama3);
  CHECK(!llama.head_norms);
  CHECK(!llama.tied_head);
  CHECK(llama.eps == 1e-5);
}

TEST_CASE("stop tokens: generation_config.json goes before config.json, one or a list") {
  const auto tiny = TargetConfig::read(fs::path(DFLASH_EXAMPLE_DATA) / "tiny-target");
  CHECK(tiny.stop_tokens == std::vector<std::int32_t>{2046, 2044});
  const auto qwen2 = TargetConfig::read(data / "golden" / "target_qwen2");
  CHECK(qwen2.stop_tokens == std::vector<std::int32_t>{2});
  json config = valid();
  CHECK(read(config).stop_tokens.empty());
  config["eos_token_id"] = {5, 6};
  CHECK(read(config).stop_tokens == std::vector<std::int32_t>{5, 6});
  config["eos_token_id"] = nullptr;
  CHECK(read(config).stop_tokens.empty());
}

TEST_CASE("fields that may be missing have the families' defaults") {
  json config = valid("llama");
  for (const char* field : {"num_key_value_heads", "tie_word_embeddings", "rope_theta"})
    config.erase(field);
  const auto c = read(config);
  CHECK(c.kv_heads == 4);
  CHECK(c.head_dim == 8);
  CHECK(!c.tied_head);
  CHECK(c.rope.theta == 10000);
}

TEST_CASE("biases follow the family") {
  json config = valid("qwen2");
  CHECK(read(config).qkv_bias);
  CHECK(!read(config).o_bias);
  for (const char* family : {"qwen3", "llama"}) {
    config = valid(family);
    CHECK(!read(config).qkv_bias);
    config["attention_bias"] = true;
    CHECK(read(config).qkv_bias);
    CHECK(read(config).o_bias);
  }
  config["mlp_bias"] = true;
  CHECK(read(config).mlp_bias);
}

TEST_CASE("sliding windows come from layer_types, or from max_window_layers on") {
  json config = valid();
  config["sliding_window"] = 7;
  config["max_window_layers"] = 3;
  CHECK(read(config).windows == std::vector<dflash::index_t>{0, 0, 0, 0});
  config["use_sliding_window"] = true;
  CHECK(read(config).windows == std::vector<dflash::index_t>{0, 0, 0, 7});
  config["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention",
                           "full_attention"};
  CHECK(read(config).windows == std::vector<dflash::index_t>{7, 0, 7, 0});
}

TEST_CASE("a missing field is named with its file") {
  for (const char* field : {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "vocab_size", "rms_norm_eps"}) {
    json config = valid();
    config.erase(field);
    check_names(error_of(config), {"a/config.json", field});
  }
}

TEST_CASE("a wrong value is named with its field and file") {
  const std::pair<const char*, json> wrong[] = {
      {"model_type", "mamba"},
      {"model_type", 3},
      {"architectures", {"DFlashDraftModel"}},
      {"hidden_size", "32"},
      {"hidden_size", 0},
      {"hidden_size", -32},
      {"hidden_size", 1e30},
      {"num_hidden_layers", 123456789},
      {"num_key_value_heads", 3},
      {"num_key_value_heads", 0},
      {"head_dim", 7},
      {"rms_norm_eps", 0},
      {"rms_norm_eps", "small"},
      {"hidden_act", "gelu"},
      {"partial_rotary_factor", 0.5},
      {"quantization_config", {{"quant_method", "awq"}}},
      {"tie_word_embeddings", "yes"},
      {"layer_types", {"full_attention"}},
      {"layer_types", {"full_attention", "linear_attention", "full_attention", "full_attention"}},
      {"eos_token_id", "</s>"},
      {"rope_theta", "large"},
      {"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}},
  };
  for (const auto& [field, value] : wrong) {
    json config = valid();
    config[field] = value;
    check_names(error_of(config), {"a/config.json", field});
  }
  json config = valid();
  config["hidden_size"] = 33;
  check_names(error_of(config), {"a/config.json", "head_dim", "33"});
  config = valid();
  config["layer_types"] = std::vector<std::string>(4, "sliding_attention");
  check_names(error_of(config), {"a/config.json", "use_sliding_window"});
  config["use_sliding_window"] = true;
  check_names(error_of(config), {"a/config.json", "sliding_window"});
}

TEST_CASE(
    "a folder without a config, and a config that is no JSON, are errors that name the file") {
  const fs::path folder = fs::temp_directory_path() / "dflash_target_config_test";
  fs::create_directories(folder);
  fs::remove(folder / "config.json");
  CHECK_THROWS_WITH_AS(TargetConfig::read(folder), doctest::Contains("config.json"), dflash::Error);
  std::ofstream(folder / "config.json") << "{\"model_type\": ";
  CHECK_THROWS_WITH_AS(TargetConfig::read(folder), doctest::Contains("config.json"), dflash::Error);
  fs::remove_all(folder);
}

}  // namespace target_config_test
