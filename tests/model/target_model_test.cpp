#include "dflash/model/target_model.hpp"

#include <doctest/doctest.h>

#include "cpu/wide_backend.hpp"
#include "dflash/cpu.hpp"
#include "model/target_fixture.hpp"

namespace target_model_test {

using namespace dflash;
using dflash_test::WideBackend;
using fixture::PlainDecoder;
using fixture::RandomTarget;
using fixture::small_config;

template <class T>
using Target = TargetModel<CpuBackend<T>>;

const std::filesystem::path tiny = std::filesystem::path(DFLASH_EXAMPLE_DATA) / "tiny-target";

template <class B, class T>
std::vector<T> host(const Tensor<B, T, 2>& t) {
  return {t.view().data, t.view().data + t.size()};
}

std::vector<std::int32_t> some_tokens(index_t n, index_t vocabulary, std::uint64_t seed = 3) {
  const Random random(seed);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = std::int32_t(random.integer(i) % std::uint64_t(vocabulary));
  return tokens;
}

template <class T>
TargetOutput<CpuBackend<T>> run_one(const Target<T>& target,
                                    const std::vector<std::int32_t>& tokens,
                                    const TargetRequest& request) {
  return target.prefill(tokens, std::vector<index_t>{0, index_t(tokens.size())}, request);
}

/// The same request, `step` tokens at a time through a cache; features and logits of all rows.
template <class T>
std::pair<std::vector<T>, std::vector<T>> in_steps(const Target<T>& target,
                                                   const std::vector<std::int32_t>& tokens,
                                                   index_t step, const TargetRequest& request) {
  auto cache = target.cache();
  std::pair<std::vector<T>, std::vector<T>> all;
  for (index_t at = 0; at < index_t(tokens.size()); at += step) {
    const index_t n = std::min(step, index_t(tokens.size()) - at);
    const auto part = std::span(tokens).subspan(std::size_t(at), std::size_t(n));
    const auto output = target.forward(part, cache, request);
    const auto features = host(output.features), logits = host(output.logits);
    all.first.insert(all.first.end(), features.begin(), features.end());
    all.second.insert(all.second.end(), logits.begin(), logits.end());
  }
  CHECK(cache.length() == index_t(tokens.size()));
  return all;
}

template <class Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void check_names(const std::string& text, std::initializer_list<std::string> parts) {
  INFO(text);
  for (const auto& part : parts) CHECK(text.find(part) != std::string::npos);
}

TEST_CASE("every family agrees with a decoder written row by row") {
  std::vector<nlohmann::json> configs;
  for (const char* type : {"qwen3", "qwen2", "llama"}) configs.push_back(small_config(type));
  for (const char* type : {"qwen3", "llama"}) {
    configs.push_back(small_config(type));
    configs.back()["attention_bias"] = true;
    configs.back()["mlp_bias"] = true;  // Llama's alone
    configs.back()["tie_word_embeddings"] = true;
  }
  for (const char* type : {"qwen3", "qwen2"})
    for (const int window : {1, 4}) {
      configs.push_back(small_config(type));
      configs.back()["use_sliding_window"] = true;
      configs.back()["sliding_window"] = window;
      configs.back()["max_window_layers"] = 1;
    }
  for (const auto& config : configs) {
    CAPTURE(config.dump());
    const RandomTarget files(config);
    CpuBackend<double> backend;
    const Target<double> target(backend, files.folder);
    const auto tokens = some_tokens(11, 50);
    const auto expected = PlainDecoder{files}.run(tokens);
    const TargetRequest request{.layers = {2, 0, 2, 1}, .logits = Logits::all};
    const auto output = run_one(target, tokens, request);
    REQUIRE(output.features.view().shape[1] == 4 * 24);
    double worst = 0;
    for (index_t n = 0; n < 11; ++n) {
      for (index_t c = 0; c < 4; ++c)
        for (index_t i = 0; i < 24; ++i)
          worst = std::max(worst, std::abs(output.features.view()(n, c * 24 + i) -
                                           expected[std::size_t(request.layers[std::size_t(c)])]
                                                   [std::size_t(n)][std::size_t(i)]));
      for (index_t i = 0; i < 50; ++i)
        worst = std::max(worst, std::abs(output.logits.view()(n, i) -
                                         expected[3][std::size_t(n)][std::size_t(i)]));
    }
    CHECK(worst < 1e-11);
  }
}

TEST_CASE("a sample's rows have the same bits alone and in any pack") {
  CpuBackend<float> backend;
  const Target<float> target(backend, tiny);
  const TargetRequest request{.layers = {1, 5, 7}, .last_hidden = true, .logits = Logits::all};
  std::vector<std::int32_t> pack;
  std::vector<index_t> offsets{0};
  std::vector<float> features, last_hidden, logits;
  for (const index_t length : {37, 1, 5, 64, 23}) {
    const auto tokens = some_tokens(length, 2048, std::uint64_t(length));
    const auto alone = run_one(target, tokens, request);
    const auto append = [](std::vector<float>& all, const std::vector<float>& part) {
      all.insert(all.end(), part.begin(), part.end());
    };
    append(features, host(alone.features));
    append(last_hidden, host(alone.last_hidden));
    append(logits, host(alone.logits));
    pack.insert(pack.end(), tokens.begin(), tokens.end());
    offsets.push_back(index_t(pack.size()));
  }
  const auto together = target.prefill(pack, offsets, request);
  CHECK(host(together.features) == features);
  CHECK(host(together.last_hidden) == last_hidden);
  CHECK(host(together.logits) == logits);

  // The last layer runs for the last rows alone, or, if its output is asked for, for all.
  const TargetRequest requests[] = {{.layers = {}, .logits = Logits::last},
                                    {.layers = {5}, .logits = Logits::last},
                                    {.layers = {7}, .logits = Logits::last},
                                    {.layers = {}, .last_hidden = true, .logits = Logits::last}};
  for (const TargetRequest& some : requests) {
    const auto last = target.prefill(pack, offsets, some);
    REQUIRE(last.logits.view().shape[0] == 5);
    for (index_t i = 0; i < 5; ++i)
      for (index_t t = 0; t < 2048; ++t)
        REQUIRE(last.logits.view()(i, t) ==
                together.logits.view()(offsets[std::size_t(i) + 1] - 1, t));
  }
}

TEST_CASE("a prompt whose last row alone is asked for leaves all of its keys in the cache") {
  CpuBackend<float> backend;
  const Target<float> target(backend, tiny);
  const auto tokens = some_tokens(30, 2048);
  const std::span all(tokens);
  const auto whole = run_one(target, tokens, {.layers = {7}, .logits = Logits::all});
  auto cache = target.cache();
  for (const auto& [begin, count] : {std::pair{0, 20}, {20, 9}, {29, 1}}) {
    const auto output = target.forward(all.subspan(std::size_t(begin), std::size_t(count)), cache,
                                       {.layers = {}, .logits = Logits::last});
    REQUIRE(output.logits.view().shape[0] == 1);
    for (index_t t = 0; t < 2048; ++t)
      REQUIRE(output.logits.view()(0, t) == whole.logits.view()(begin + count - 1, t));
  }
}

TEST_CASE("cached decoding has the bits of prefill, however many tokens come at a time") {
  const TargetRequest request{.layers = {0, 3, 7}, .logits = Logits::all};
  const auto check = [&](const auto& target, index_t length, index_t vocabulary) {
    const auto tokens = some_tokens(length, vocabulary);
    const auto whole = run_one(target, tokens, request);
    for (const index_t step : {1, 7, 31, 200}) {
      const auto [features, logits] = in_steps(target, tokens, step, request);
      CHECK(features == host(whole.features));
      CHECK(logits == host(whole.logits));
    }
  };
  CpuBackend<float> single;
  check(Target<float>(single, tiny), 150, 2048);
  CpuBackend<double> backend;
  check(Target<double>(backend, tiny), 70, 2048);
}

TEST_CASE("cached decoding has the bits of prefill in every precision and storage of the weights") {
  const TargetRequest request{.layers = {7}, .logits = Logits::all};
  const auto tokens = some_tokens(70, 2048);
  for (CpuPrecision precision : cpu_precisions.values())
    for (const WeightStorage storage :
         {WeightStorage::as_stored, WeightStorage::wide, WeightStorage::int8}) {
      CAPTURE(name_of(precision));
      CAPTURE(int(storage));
      CpuBackend<float> backend(2, precision);
      const Target<float> target(backend, tiny, storage);
      const auto whole = run_one(target, tokens, request);
      for (const index_t step : {1, 9}) {
        const auto [features, logits] = in_steps(target, tokens, step, request);
        CHECK(features == host(whole.features));
        CHECK(logits == host(whole.logits));
      }
    }
}

TEST_CASE("Products in bf16 give the same target from rows in bfloat16 and in float") {
  const TargetRequest request{.layers = {7}, .logits = Logits::all};
  const auto tokens = some_tokens(70, 2048);
  const std::vector<index_t> one_sample{0, index_t(tokens.size())};
  CpuBackend<float> backend(2, CpuPrecision::bf16);
  WideBackend in_float(2, CpuPrecision::bf16);
  for (const WeightStorage storage : {WeightStorage::as_stored, WeightStorage::int8}) {
    CAPTURE(int(storage));
    const Target<float> target(backend, tiny, storage);
    const TargetModel<WideBackend> wide(in_float, tiny, storage);
    const auto a = target.prefill(tokens, one_sample, request);
    const auto b = wide.prefill(tokens, one_sample, request);
    CHECK(host(a.features) == host(b.features));
    CHECK(host(a.logits) == host(b.logits));
    const TargetRequest last{.layers = {}, .logits = Logits::last};
    CHECK(host(target.prefill(tokens, one_sample, last).logits) ==
          host(wide.prefill(tokens, one_sample, last).logits));
  }
}

TEST_CASE("weights that are bfloat16 in the file may stay so, with the same bits") {
  const auto tokens = some_tokens(20, 2048);
  const TargetRequest request{.layers = {7}, .logits = Logits::all};
  CpuBackend<float> backend;
  const Target<float> wide(backend, tiny, WeightStorage::wide), stored(backend, tiny);
  CHECK(host(run_one(stored, tokens, request).logits) ==
        host(run_one(wide, tokens, request).logits));
}

TEST_CASE("weights in int8 give nearly the same hidden states") {
  const auto tokens = some_tokens(40, 2048);
  CpuBackend<float> backend;
  const Target<float> whole(backend, tiny), rounded(backend, tiny, WeightStorage::int8);
  const auto a = host(run_one(whole, tokens, {.layers = {7}}).features),
             b = host(run_one(rounded, tokens, {.layers = {7}}).features);
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    difference += double(a[i] - b[i]) * double(a[i] - b[i]), size += double(a[i]) * double(a[i]);
  CHECK(difference > 0);
  CHECK(std::sqrt(difference / size) < 0.05);
}

TEST_CASE("sliding windows in cached decoding have the bits of prefill") {
  auto config = small_config("qwen3");
  config["use_sliding_window"] = true;
  config["sliding_window"] = 5;
  config["max_window_layers"] = 1;
  const RandomTarget files(config);
  CpuBackend<float> backend;
  const Target<float> target(backend, files.folder);
  const auto tokens = some_tokens(23, 50);
  const TargetRequest request{.layers = {0, 1, 2}, .logits = Logits::all};
  const auto whole = run_one(target, tokens, request);
  for (const index_t step : {1, 4, 9}) {
    const auto [features, logits] = in_steps(target, tokens, step, request);
    CHECK(features == host(whole.features));
    CHECK(logits == host(whole.logits));
  }
}

TEST_CASE("a cache that was truncated goes on as if the forgotten rows had never been") {
  CpuBackend<float> backend;
  const Target<float> target(backend, tiny);
  const auto tokens = some_tokens(40, 2048), others = some_tokens(30, 2048, 9);
  const TargetRequest request{.layers = {2}, .logits = Logits::all};
  auto cache = target.cache();
  target.forward(std::span(tokens).first(20), cache, request);
  target.forward(others, cache, request);
  cache.truncate(20);
  const auto rest = target.forward(std::span(tokens).subspan(20), cache, request);
  const auto whole = run_one(target, tokens, request);
  const auto expected = host(whole.logits);
  CHECK(host(rest.logits) == std::vector<float>(expected.begin() + 20 * 2048, expected.end()));
}

TEST_CASE("the results do not depend on the number of threads") {
  const auto tokens = some_tokens(90, 2048);
  const TargetRequest request{.layers = {7}, .logits = Logits::all};
  std::vector<float> first;
  for (const int threads : {1, 2, 3}) {
    CpuBackend<float> backend(threads);
    const Target<float> target(backend, tiny);
    const auto logits = host(run_one(target, tokens, request).logits);
    if (first.empty()) first = logits;
    CHECK(logits == first);
  }
}

TEST_CASE("a forward that fails leaves the cache as it was") {
  CpuBackend<float> backend;
  const Target<float> target(backend, tiny);
  auto cache = target.cache();
  target.forward(some_tokens(5, 2048), cache, {});
  CHECK_THROWS_AS(target.forward(std::vector<std::int32_t>{3, 2048}, cache, {}), Error);
  CHECK(cache.length() == 5);
}

TEST_CASE("requests that make no sense are refused") {
  CpuBackend<float> backend;
  const Target<float> target(backend, tiny);
  const auto run = [&](const std::vector<std::int32_t>& tokens, const TargetRequest& request) {
    return error_of([&] { run_one(target, tokens, request); });
  };
  check_names(run({1, 2}, {.layers = {8}}), {"layer id 8", "0 to 7"});
  check_names(run({1, 2}, {.layers = {3, -1}}), {"layer id -1"});
  check_names(run({1, 2048}, {.layers = {3}}), {"token 2048", "row 1", "2048"});
  check_names(run({-1}, {.layers = {3}}), {"token -1", "row 0"});
  const std::vector<std::int32_t> tokens{1, 2, 3};
  for (const auto& offsets :
       {std::vector<index_t>{0, 2}, std::vector<index_t>{1, 3}, std::vector<index_t>{0, 2, 2, 3},
        std::vector<index_t>{0, 3, 2, 3}, std::vector<index_t>{}})
    CHECK_THROWS_AS(target.prefill(tokens, offsets, {.layers = {3}}), Error);
  auto cache = target.cache();
  CHECK_THROWS_AS(target.forward({}, cache, {}), Error);
}

TEST_CASE("weights that do not fit the config are named with both shapes") {
  CpuBackend<float> backend;
  RandomTarget files(small_config("qwen2"));
  const auto load = [&] { return error_of([&] { Target<float>(backend, files.folder); }); };
  CHECK(load() == "no error");

  const auto change = [&](const char* field, int value) {
    auto config = small_config("qwen2");
    config[field] = value;
    write_json(files.folder / "config.json", config);
    return load();
  };
  check_names(change("intermediate_size", 41),
              {"model.safetensors", "model.layers.0.mlp.gate_proj", "(40, 24)", "(41, 24)"});
  check_names(change("num_key_value_heads", 3), {"self_attn.k_proj", "(16, 24)", "(24, 24)"});
  check_names(change("vocab_size", 51), {"model.embed_tokens.weight", "(50, 24)", "(51, 24)"});
  check_names(change("num_hidden_layers", 4), {"model.layers.3.", "no tensor"});
  CHECK(change("num_hidden_layers", 2) == "no error");
  write_json(files.folder / "config.json", small_config("qwen2"));
  for (const char* name :
       {"lm_head.weight", "model.norm.weight", "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.bias", "model.layers.2.post_attention_layernorm.weight"}) {
    auto kept = files.weights.extract(name);
    files.write();
    check_names(load(), {files.folder.string(), "no tensor", name});
    files.weights.insert(std::move(kept));
  }
}

}  // namespace target_model_test
