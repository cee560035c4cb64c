#include "dflash/io/weights_folder.hpp"

#include <doctest/doctest.h>

#include "dflash/io/safetensors_writer.hpp"
#include "io/temporary_folder.hpp"

namespace weights_folder_test {

using namespace dflash;

void write_shard(const std::filesystem::path& path, const std::string& name, float value) {
  const TensorData tensors[] = {{name, DType::f32, {1}, &value}};
  write_safetensors(path, tensors);
}

std::string index_of(const std::string& entries) { return "{\"weight_map\": {" + entries + "}}"; }

TEST_CASE("weights come from one file or from the shards of an index") {
  const TemporaryFolder folder;
  const auto index = folder / "model.safetensors.index.json";
  write_shard(folder / "one.safetensors", "a", 1);
  write_shard(folder / "two.safetensors", "b", 2);
  put(index, index_of(R"("a": "one.safetensors", "b": "two.safetensors")"));
  float value;
  {
    const WeightsFolder weights(folder.path());
    CHECK(weights.names() == std::vector<std::string>{"a", "b"});
    CHECK(weights.contains("b"));
    CHECK_FALSE(weights.contains("c"));
    weights.read("b", {1}, &value);
    CHECK(value == 2);
    weights.read("a", {1}, TensorPart{{0, 1}}, &value);
    CHECK(value == 1);
    CHECK(mentions(error_of([&] {
                     weights.read("a", {2}, TensorPart{{0, 1}}, &value);
                   }),
                   "one.safetensors: tensor \"a\" has shape (1) where (2) is expected"));
    CHECK(error_of([&] {
            weights.read("b", {1, 1}, &value);
          }) == (folder / "two.safetensors").string() +
                    ": tensor \"b\" has shape (1) where (1, 1) is expected");
    CHECK(error_of([&] { weights.read("c", {1}, &value); }) ==
          folder.path().string() + ": its weights have no tensor \"c\"");
  }
  write_shard(folder / "model.safetensors", "a", 3);
  WeightsFolder(folder.path()).read("a", {1}, &value);
  CHECK(value == 3);
}

TEST_CASE("an index that lies is refused") {
  const TemporaryFolder folder;
  const auto complaint = [&](const std::string& index) {
    put(folder / "model.safetensors.index.json", index);
    return error_of([&] { WeightsFolder weights(folder.path()); });
  };
  CHECK(mentions(error_of([&] { WeightsFolder weights(folder.path()); }), "has neither"));
  write_shard(folder / "one.safetensors", "a", 1);
  CHECK(mentions(complaint("{}"), "no field \"weight_map\""));
  CHECK(mentions(complaint("{\"weight_map\": []}"), "is not an object"));
  CHECK(mentions(complaint(index_of("\"a\": 3")), "\"weight_map.a\" is 3 where a string"));
  CHECK(mentions(complaint(index_of(R"("a": "two.safetensors")")), "does not exist"));
  CHECK(mentions(complaint(index_of(R"("b": "one.safetensors")")),
                 "tensor \"b\" is not in \"one.safetensors\""));
  for (const char* name : {"../one.safetensors", "/etc/passwd", "x/one.safetensors", "", "..", "."})
    CHECK(mentions(complaint(index_of("\"a\": \"" + std::string(name) + "\"")),
                   "not the name of a safetensors file"));
}

}  // namespace weights_folder_test
