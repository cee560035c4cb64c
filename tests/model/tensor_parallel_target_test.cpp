#include <doctest/doctest.h>

#include <atomic>

#include "dflash/comm/thread_communicator.hpp"
#include "model/tensor_parallel_suite.hpp"

namespace tensor_parallel_target_test {

using namespace dflash;
using fixture::RandomTarget;
using tensor_parallel_suite::check_target;

nlohmann::json headed_config(const std::string& type, index_t heads, index_t kv_heads) {
  auto config = fixture::small_config(type);
  config["num_attention_heads"] = heads;
  config["num_key_value_heads"] = kv_heads;
  return config;
}

template <class T>
void check_degrees(const nlohmann::json& config, std::initializer_list<int> degrees) {
  const RandomTarget files(config);
  for (const int degree : degrees) {
    CAPTURE(config.dump());
    CAPTURE(degree);
    ThreadCommunicator::run(
        degree, [&](ThreadCommunicator world) { check_target<T>(world, degree, files.folder); });
  }
}

/// The weights of a folder, counting what is read. Reads parts only if asked to.
template <bool Parts>
class CountingSource {
 public:
  CountingSource(const std::filesystem::path& folder, index_t& count)
      : folder_(folder), count_(&count) {}

  bool contains(std::string_view name) const { return folder_.contains(name); }
  const TensorEntry& at(std::string_view name) const { return folder_.at(name); }
  template <class T>
  void read(std::string_view name, const std::vector<index_t>& shape, T* out) const {
    *count_ += folder_.at(name).size();
    folder_.read(name, shape, out);
  }
  template <class T>
  requires Parts void read(std::string_view name, const std::vector<index_t>& shape,
                           const TensorPart& part, T* out) const {
    *count_ += part.size();
    folder_.read(name, shape, part, out);
  }

 private:
  WeightsFolder folder_;
  index_t* count_;
};

static_assert(PartialWeightSource<WeightsFolder>);
static_assert(PartialWeightSource<CountingSource<true>>);
static_assert(!PartialWeightSource<CountingSource<false>>);

TEST_CASE("A target over ranks is the target of one, in double") {
  SUBCASE("6 heads on 2") { check_degrees<double>(headed_config("qwen3", 6, 2), {1, 2, 3, 4}); }
  SUBCASE("6 heads on 3") { check_degrees<double>(headed_config("qwen3", 6, 3), {2, 4, 5}); }
  SUBCASE("14 heads on 2") { check_degrees<double>(headed_config("qwen2", 14, 2), {2, 3, 4}); }
  SUBCASE("biases everywhere") {
    auto config = headed_config("llama", 6, 2);
    config["attention_bias"] = config["mlp_bias"] = true;
    check_degrees<double>(config, {2, 3, 4});
  }
  SUBCASE("a tied head, a vocabulary and features that nothing divides") {
    auto config = headed_config("qwen3", 5, 1);
    config["tie_word_embeddings"] = true;
    config["vocab_size"] = 53;
    config["intermediate_size"] = 37;
    check_degrees<double>(config, {2, 3, 4});
  }
  SUBCASE("sliding layers") {
    auto config = headed_config("qwen3", 6, 2);
    config["use_sliding_window"] = true;
    config["sliding_window"] = 5;
    config["max_window_layers"] = 1;
    check_degrees<double>(config, {3, 4});
  }
  SUBCASE("ranks without a head, a feature or a token") {
    auto config = headed_config("qwen2", 2, 1);
    config["intermediate_size"] = 3;
    config["vocab_size"] = 4;
    check_degrees<double>(config, {3, 4, 5});
  }
}

TEST_CASE("A target over ranks is the target of one, in float") {
  SUBCASE("6 heads on 2") { check_degrees<float>(headed_config("qwen3", 6, 2), {1, 2, 3, 4}); }
  SUBCASE("14 heads on 2") { check_degrees<float>(headed_config("llama", 14, 2), {3}); }
}

TEST_CASE("A trained target over ranks is the target of one") {
  const std::filesystem::path tiny = std::filesystem::path(DFLASH_EXAMPLE_DATA) / "tiny-target";
  for (const int degree : {2, 3})
    ThreadCommunicator::run(degree, [&](ThreadCommunicator world) {
      check_target<float>(world, degree, tiny);
      check_target<double>(world, degree, tiny);
    });
}

TEST_CASE("Speculative decoding does not depend on the number of ranks") {
  const RandomTarget files(headed_config("qwen3", 6, 2));
  for (const int degree : {1, 2, 3, 4})
    ThreadCommunicator::run(degree, [&](ThreadCommunicator world) {
      tensor_parallel_suite::check_speculation<double>(world, degree, files.folder);
    });
}

TEST_CASE("Ranks share an embedding, for the same tokens or for tokens of their own") {
  for (const int degree : {1, 2, 3, 4})
    for (const index_t vocabulary : {50, 3}) {
      ThreadCommunicator::run(degree, [&](ThreadCommunicator world) {
        tensor_parallel_suite::check_embedding<float>(world, degree, vocabulary, {11, 0, 4, 90});
        tensor_parallel_suite::check_embedding<double>(world, degree, vocabulary, {0, 0, 0, 0});
      });
    }
}

TEST_CASE("Groups of a world serve targets of their own") {
  const RandomTarget files(headed_config("qwen3", 6, 2));
  ThreadCommunicator::run(
      4, [&](ThreadCommunicator world) { check_target<double>(world, 2, files.folder); });
}

TEST_CASE("What very long prefills send is counted too") {
  using B = CpuBackend<float>;
  const RandomTarget files(headed_config("qwen3", 6, 2));
  ThreadCommunicator::run(3, [&](ThreadCommunicator world) {
    B cpu;
    TensorParallelGroup group(std::move(world), 3);
    const TargetModel target(cpu, group, files.folder);
    const auto tokens = tensor_parallel_suite::some_tokens(2500, 50);
    target.prefill(tokens, std::vector<index_t>{0, 1200, 2500}, {.layers = {0, 1}});
    const Traffic traffic = group.communicator().traffic();
    CHECK(traffic ==
          target_traffic(target.config(), group.share(), 2500, 2, 0, NumberBytes::of<B>()));
    CHECK(traffic.all_reduce_sum.calls == 1 + 2 * (1 + 3));
  });
}

TEST_CASE("A rank reads its own parts of the weights, and no more") {
  auto config = headed_config("llama", 6, 2);
  SUBCASE("untied") {}
  SUBCASE("tied, with biases") {
    config["tie_word_embeddings"] = config["attention_bias"] = config["mlp_bias"] = true;
  }
  const RandomTarget files(config);
  index_t whole = 0;
  for (const auto& [name, values] : files.weights) whole += index_t(values.size());
  for (const int ranks : {1, 2, 3, 4}) {
    std::atomic<index_t> most = 0;
    ThreadCommunicator::run(ranks, [&](ThreadCommunicator world) {
      CpuBackend<float> cpu;
      TensorParallelGroup group(std::move(world), ranks);
      index_t read = 0, read_by_other = 0;
      const TargetModel target(cpu, group, files.config, CountingSource<true>(files.folder, read));
      CHECK(read == target.cut().weights(files.config));
      index_t seen = most;
      while (seen < read && !most.compare_exchange_weak(seen, read)) {
      }
      // A source that cannot read parts is no obstacle.
      const TargetModel other(cpu, group, files.config,
                              CountingSource<false>(files.folder, read_by_other));
      CHECK(read_by_other == whole);
      const auto tokens = tensor_parallel_suite::some_tokens(7, 50);
      const TargetRequest request{.layers = {2}, .logits = Logits::all};
      const auto logits = [&](const auto& model) {
        auto output = model.prefill(tokens, std::vector<index_t>{0, 7}, request);
        return tensor_parallel_suite::host<float>(output.logits.view());
      };
      CHECK(logits(target) == logits(other));
    });
    if (ranks == 1) CHECK(most == whole);
    // Norms lie on every rank, and key/value heads on several.
    if (ranks > 1) CHECK(double(most) < 1.6 * double(whole) / ranks);
  }
}

TEST_CASE("A degree that does not divide the world is refused with both numbers") {
  CHECK_THROWS_WITH_AS(
      ThreadCommunicator::run(
          4, [](ThreadCommunicator world) { TensorParallelGroup group(std::move(world), 3); }),
      doctest::Contains(
          "the world has 4 ranks, which the tensor-parallel degree 3 does not divide"),
      Error);
  CHECK_THROWS_AS(TensorParallelGroup(SingleProcess{}, 0), Error);
  CHECK_THROWS_AS(TensorParallelGroup(SingleProcess{}, 2), Error);
}

}  // namespace tensor_parallel_target_test
