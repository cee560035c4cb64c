#include "dflash/model/frozen_target.hpp"

#include <doctest/doctest.h>

#include "dflash/cpu.hpp"
#include "model/target_fixture.hpp"

namespace frozen_target_test {

using namespace dflash;
using fixture::RandomTarget;
using fixture::small_config;
using Frozen = FrozenTarget<CpuBackend<float>>;

std::vector<float> host(View<const float, 2> v) { return {v.data, v.data + v.size()}; }

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
  CHECK(target.lm_head().data == target.embedding().data);
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
  CHECK(tied.lm_head().data == tied.embedding().data);
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
