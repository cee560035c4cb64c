#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/io/dtype.hpp"
#include "dflash/io/json_file.hpp"

namespace dflash {

/// What a store of features holds and how it was made: its store.json.
struct StoreDescription {
  static constexpr int version = 1;

  std::string model_type = "dflash";  // or "eagle3": the target's last hidden states are there too
  std::string target_name;            // for people; the fingerprint is what counts
  std::string target_fingerprint;     // data/target_fingerprint.hpp
  std::vector<index_t> layer_ids;     // the captured layers, in the order of a row
  index_t hidden_size = 0;            // of the target
  DType dtype = DType::bf16;          // of the stored rows: bf16, f32 or f8_e4m3
  std::string precision = "unknown";  // in which they were computed
  nlohmann::json rope_parameters;     // as the target's config has them
  std::string tokenizer_fingerprint;  // of its tokenizer.json
  index_t block_size = 0;             // that the sample filter was told
  std::string sample_filter;          // which samples were kept
  index_t shard_bytes = 256 << 20;    // a shard with several samples is no larger

  // Known once all samples are planned.
  index_t samples = 0, rows = 0;
  std::string data_fingerprint = {};  // of all ids, tokens and masks

  index_t width() const { return index_t(layer_ids.size()) * hidden_size; }
  bool has_last_hidden() const { return model_type == "eagle3"; }
};

inline nlohmann::ordered_json to_json(const StoreDescription& d) {
  return {{"version", StoreDescription::version},
          {"model_type", d.model_type},
          {"target_name", d.target_name},
          {"target_fingerprint", d.target_fingerprint},
          {"layer_ids", d.layer_ids},
          {"hidden_size", d.hidden_size},
          {"dtype", name_of(d.dtype)},
          {"precision", d.precision},
          {"rope_parameters", d.rope_parameters},
          {"tokenizer_fingerprint", d.tokenizer_fingerprint},
          {"block_size", d.block_size},
          {"sample_filter", d.sample_filter},
          {"shard_bytes", d.shard_bytes},
          {"samples", d.samples},
          {"rows", d.rows},
          {"data_fingerprint", d.data_fingerprint}};
}

[[noreturn]] inline void fail_field(const std::filesystem::path& path, const std::string& field,
                                    const std::string& found, const std::string& expected) {
  throw Error(path.string() + ": field " + in_quotes(field) + " is " + found + " where " +
              expected + " is expected");
}

/// Error naming the path, the field and the value if a store cannot be like this.
inline void check(const StoreDescription& d, const std::filesystem::path& path) {
  const auto fail = [&](const char* field, const std::string& found, const char* expected) {
    fail_field(path, field, found, expected);
  };
  constexpr index_t largest = index_t(1) << 24;  // keeps every product of sizes far from overflow
  if (d.model_type != "dflash" && d.model_type != "eagle3")
    fail("model_type", in_quotes(d.model_type), "\"dflash\" or \"eagle3\"");
  if (d.dtype != DType::bf16 && d.dtype != DType::f32 && d.dtype != DType::f8_e4m3)
    fail("dtype", in_quotes(name_of(d.dtype)), "\"BF16\", \"F32\" or \"F8_E4M3\"");
  if (d.layer_ids.empty() || d.layer_ids.size() > 4096)
    fail("layer_ids", "empty or too long", "a list of layers");
  for (const index_t id : d.layer_ids)
    if (id < 0) fail("layer_ids", std::to_string(id), "a layer");
  if (d.hidden_size < 1 || d.hidden_size > largest)
    fail("hidden_size", std::to_string(d.hidden_size), "a size");
  if (d.shard_bytes < 1) fail("shard_bytes", std::to_string(d.shard_bytes), "a size");
  if (d.samples < 0) fail("samples", std::to_string(d.samples), "a count");
  if (d.rows < 0) fail("rows", std::to_string(d.rows), "a count");
}

inline void write_store_description(const std::filesystem::path& path, const StoreDescription& d) {
  write_file(path, text_of(to_json(d), 2) + "\n");
}

/// Error naming the file and the field that is missing, of another type or impossible.
inline StoreDescription read_store_description(const std::filesystem::path& path) {
  const nlohmann::json json = read_json(path);
  const auto version = required<index_t>(json, "version", path);
  if (version != StoreDescription::version)
    throw Error(path.string() + ": field \"version\" is " + std::to_string(version) +
                ", but this program reads version " + std::to_string(StoreDescription::version));
  StoreDescription d;
  const auto read = [&]<class T>(const char* field, T& value) {
    value = required<T>(json, field, path);
  };
  read("model_type", d.model_type);
  read("target_name", d.target_name);
  read("target_fingerprint", d.target_fingerprint);
  read("layer_ids", d.layer_ids);
  read("hidden_size", d.hidden_size);
  const auto name = required<std::string>(json, "dtype", path);
  const auto dtype = dtype_named(name);
  if (!dtype) fail_field(path, "dtype", in_quotes(name), "\"BF16\", \"F32\" or \"F8_E4M3\"");
  d.dtype = *dtype;
  read("precision", d.precision);
  d.rope_parameters = optional<nlohmann::json>(json, "rope_parameters", path);
  read("tokenizer_fingerprint", d.tokenizer_fingerprint);
  read("block_size", d.block_size);
  read("sample_filter", d.sample_filter);
  read("shard_bytes", d.shard_bytes);
  read("samples", d.samples);
  read("rows", d.rows);
  read("data_fingerprint", d.data_fingerprint);
  check(d, path);
  return d;
}

/// Error naming the first field in which the store at `path` differs from what is to be written to
/// it, with both values. The target's name may differ where its fingerprint agrees.
inline void expect_same(const std::filesystem::path& path, const StoreDescription& stored,
                        const StoreDescription& wanted) {
  const auto old_fields = to_json(stored), new_fields = to_json(wanted);
  const bool same_target =
      !stored.target_fingerprint.empty() && stored.target_fingerprint == wanted.target_fingerprint;
  for (const auto& [field, value] : old_fields.items()) {
    const std::string before = text_of(value), now = text_of(new_fields[field]);
    if (before == now || (field == "target_name" && same_target)) continue;
    throw Error(path.string() + ": field " + in_quotes(field) + " is " + before +
                ", but now it would be " + now);
  }
}

}  // namespace dflash
