#include "dflash/model/frozen_target.hpp"

#include <doctest/doctest.h>

#include <algorithm>

#include "dflash/cpu.hpp"
#include "model/target_fixture.hpp"

namespace frozen_target_test {

using namespace dflash;
using fixture::RandomTarget;
using fixture::small_config;
using Frozen = FrozenTarget<CpuBackend<float>>;

std::vector<float> host(const StoredRows<const float>& rows) {
  std::vector<float> values(std::size_t(rows.size()));
  rows.visit([&](const auto& v) {
    std::transform(v.data, v.data + v.size(), values.begin(), [](auto x) { return float(x); });
  });
  return values;
}
const void* data(const StoredRows<const float>& rows) {
  return rows.visit([](const auto& v) -> const void* { return v.data; });
}

TEST_CASE("embedding and head are read under their usual names") {
  const RandomTarget files(small_config("llama"));
  CpuBackend<float> backend;
  const Frozen target(backend, files.folder);
  CHECK(target.vocabulary() == 50);
  CHECK(target.hidden() == 24);
  CHECK(host(target.embedding()) == files.weights.at("model.embed_tokens.weight"));
  CHECK(host(target.lm_head()) == files.weights.at("lm_head.weight"));
}

TEST_CASE("a tied head is the embedding itself") {
  auto config = small_config("qwen3");
  config["tie_word_embeddings"] = true;
  const RandomTarget files(config);
  CpuBackend<float> backend;
  const Frozen target(backend, files.folder);
  CHECK(data(target.lm_head()) == data(target.embedding()));
}

TEST_CASE("what is bfloat16 in the file stays so in memory, unless asked to be wide") {
  RandomTarget files(small_config("llama"));
  files.dtype = DType::bf16;
  files.write();
  CpuBackend<float> backend;
  const Frozen target(backend, files.folder);
  CHECK(target.embedding().narrow());
  CHECK(target.lm_head().narrow());
  const Frozen wide(backend, WeightsFolder(files.folder), /*tied=*/false, {}, {}, {},
                    WeightStorage::wide);
  CHECK_FALSE(wide.embedding().narrow());
  CHECK(host(target.embedding()) == host(wide.embedding()));
  CHECK(host(target.lm_head()) == host(wide.lm_head()));
  CHECK(host(target.lm_head().rows({7, 20})) == host(wide.lm_head().rows({7, 20})));
  CHECK_THROWS_WITH_AS(target.lm_head().wide(), doctest::Contains("WeightStorage::wide"), Error);
  CpuBackend<double> doubles;
  CHECK(FrozenTarget(doubles, files.folder).embedding().wide()(3, 4) ==
        double(wide.embedding().wide()(3, 4)));
}

TEST_CASE("ranks hold rows of a head in bfloat16") {
  RandomTarget files(small_config("llama"));
  files.dtype = DType::bf16;
  files.write();
  CpuBackend<float> backend;
  const Frozen all(backend, files.folder),
      part(backend, files.folder, {}, {.embedding = {3, 1}, .lm_head = {3, 2}});
  const Range words = part.embedding_slice().range(), heads = part.lm_head_slice().range();
  CHECK(part.embedding().narrow());
  CHECK(host(part.embedding()) == host(all.embedding().rows(words)));
  CHECK(host(part.lm_head()) == host(all.lm_head().rows(heads)));
}

TEST_CASE("any model will do that has the two tensors, under whatever names") {
  RandomTarget files(small_config("qwen3"));
  write_json(files.folder / "config.json",
             {{"model_type", "unheard-of"}, {"text_config", {{"tie_word_embeddings", false}}}});
  for (const auto& [from, to] : {std::pair{"model.embed_tokens.weight", "words.weight"},
                                 std::pair{"lm_head.weight", "out.weight"}}) {
    files.shapes[to] = files.shapes[from];
    auto node = files.weights.extract(from);
    node.key() = to;
    files.weights.insert(std::move(node));
  }
  files.write();
  CpuBackend<float> backend;
  const Frozen target(backend, files.folder,
                      {.embedding = "words.weight", .lm_head = "out.weight"});
  CHECK(host(target.embedding()) == files.weights.at("words.weight"));
  CHECK(host(target.lm_head()) == files.weights.at("out.weight"));
  CHECK_THROWS_WITH_AS(Frozen(backend, files.folder),
                       doctest::Contains("model.embed_tokens.weight"), Error);

  write_json(files.folder / "config.json", {{"text_config", {{"tie_word_embeddings", true}}}});
  const Frozen tied(backend, files.folder, {.embedding = "words.weight"});
  CHECK(data(tied.lm_head()) == data(tied.embedding()));
}

TEST_CASE("a head of another shape than the embedding is named with both shapes") {
  RandomTarget files(small_config("llama"));
  files.shapes["lm_head.weight"] = {48, 25};
  files.write();
  CpuBackend<float> backend;
  CHECK_THROWS_WITH_AS(Frozen(backend, files.folder), doctest::Contains("lm_head.weight"), Error);
  CHECK_THROWS_WITH_AS(Frozen(backend, files.folder), doctest::Contains("(48, 25)"), Error);
  CHECK_THROWS_WITH_AS(Frozen(backend, files.folder), doctest::Contains("(50, 24)"), Error);
  CHECK_THROWS_WITH_AS(Frozen(backend, files.folder, {.embedding = "model.norm.weight"}),
                       doctest::Contains("model.norm.weight"), Error);
}

}  // namespace frozen_target_test
