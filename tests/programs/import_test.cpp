// Hidden states that the reference captured, made a store.

#include "programs/programs.hpp"

namespace import_test {

const auto captured = std::filesystem::path(DFLASH_TEST_DATA) / "golden";

/// The tiny target, said to have a hidden size of 8, and two samples of three captured layers.
struct Captured {
  TemporaryFolder folder;
  std::filesystem::path target = folder / "target", files = folder / "files",
                        store = folder / "store";

  Captured() {
    std::filesystem::copy(tiny_target, target);
    auto config = nlohmann::json::parse(content_of(target / "config.json"));
    config["hidden_size"] = 8;
    put(target / "config.json", config.dump());
    std::filesystem::create_directories(files / "rows_0-2000");
    add("ckpt_pr507/rows_2-4/data_2.ckpt.gz", "data_10.ckpt.gz");
    add("ckpt_head/rows_0-2/data_0.ckpt", "data_9.ckpt");
  }
  void add(const char* from, const char* name) const {
    put(files / "rows_0-2000" / name, content_of(captured / from));
  }
  Arguments flags() const {
    return {"--hidden-states-path",
            files,
            "--target-model-path",
            target,
            "--target-layer-ids",
            "0",
            "1",
            "2",
            "--dtype",
            "bf16",
            "--output-path",
            store};
  }
};

std::string tensor_in(const std::filesystem::path& path, const std::string& name) {
  const auto entry = safetensors_header(path)[name];
  const std::string content = content_of(path);
  std::uint64_t header = 0;
  std::memcpy(&header, content.data(), sizeof header);
  const std::size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
  return content.substr(sizeof header + header + begin, end - begin);
}

TEST_CASE("the reference's files become a store with their very numbers") {
  const Captured c;
  const auto first = succeed("import_hidden_states", c.flags());
  CHECK(mentions(first.out, "27 rows of 3 layers x 8"));
  const auto shard = c.store / "shard-000000.safetensors";
  CHECK(tensor_in(shard, "id_bytes") == "rows_0-2000/data_9.ckptrows_0-2000/data_10.ckpt.gz");
  CHECK(tensor_in(shard, "features") ==
        tensor_in(captured / "ckpt_head/expected_0.safetensors", "hidden_states") +
            tensor_in(captured / "ckpt_pr507/expected_2.safetensors", "hidden_state"));
  const auto files = files_below(c.store);
  const auto again = succeed("import_hidden_states", c.flags());
  CHECK(mentions(again.out, "nothing to do, the store is complete"));
  CHECK(files_below(c.store) == files);
}

TEST_CASE("files that do not belong together are refused in one sentence") {
  const Captured c;
  CHECK(mentions(
      failure_of("import_hidden_states", c.flags() + Arguments{"--target-layer-ids", "0", "1"}),
      "data_9.ckpt: rows of 24 numbers are not 2 captured layers of 8"));
  c.add("ckpt_pr507/rows_2-4/data_3.ckpt", "data_11.ckpt");
  CHECK(mentions(failure_of("import_hidden_states", c.flags()),
                 "data_11.ckpt holds what eagle3 needs, the first file what dflash needs"));
  put(c.files / "rows_0-2000/data_11.ckpt", "PK");
  CHECK(mentions(failure_of("import_hidden_states", c.flags()),
                 "data_11.ckpt: it is no zip archive, or its end is missing"));
  CHECK_FALSE(std::filesystem::exists(c.store));
}

TEST_CASE("tokens and last hidden states that are not the target's are refused") {
  const Captured c;
  const auto config = c.target / "config.json";
  change_json(config, [](nlohmann::json& json) { json["vocab_size"] = 1; });
  check_named(failure_of("import_hidden_states", c.flags()),
              {"data_9.ckpt: token ", "is outside the target's vocabulary of 1"});
  const Captured eagle;
  std::filesystem::remove_all(eagle.files / "rows_0-2000");
  std::filesystem::create_directories(eagle.files / "rows_0-2000");
  eagle.add("ckpt_pr507/rows_2-4/data_3.ckpt", "data_1.ckpt");
  change_json(eagle.target / "config.json", [](nlohmann::json& json) { json["hidden_size"] = 12; });
  check_named(
      failure_of("import_hidden_states", eagle.flags() + Arguments{"--target-layer-ids", "0", "1"}),
      {"data_1.ckpt: last hidden states of 8 numbers", "a hidden size of 12"});
}

TEST_CASE("a store says the target's rotary fields and keeps its dtype, no narrower") {
  const Captured c;
  const auto stored = [&](auto change) {
    std::filesystem::remove_all(c.store);
    change_json(c.target / "config.json", [&](nlohmann::json& json) {
      for (const char* field : {"dtype", "torch_dtype", "rope_theta", "rope_scaling"})
        json.erase(field);
      change(json);
    });
    succeed("import_hidden_states", c.flags() + Arguments{"--dtype", "target"});
    return nlohmann::json::parse(content_of(c.store / "store.json"));
  };
  const auto f16 = stored([](nlohmann::json& json) {
    json["torch_dtype"] = "float16";
    json["rope_theta"] = 5e5;
  });
  CHECK(f16["dtype"] == "F32");
  CHECK(f16["rope_parameters"]["rope_theta"] == 5e5);
  CHECK(f16["rope_parameters"].size() == 1);
  CHECK(stored([](nlohmann::json& json) { json["dtype"] = "bfloat16"; })["dtype"] == "BF16");
  const auto unsaid = stored([](nlohmann::json&) {});
  CHECK(unsaid["dtype"] == "BF16");  // as the embedding is
  CHECK(unsaid["rope_parameters"].is_null());
}

}  // namespace import_test
