// Prefill with capture and cached greedy decoding of a target with the shapes of qwen3-8b and
// made-up weights, in bfloat16: tokens per second, beside what the products and the bytes of the
// weights allow at best.
//   target_cuda [--layers 36] [--prompt 4096] [--new-tokens 64] [--repeats 3]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/cuda.cuh"
#include "dflash/model/target_model.hpp"
#include "dflash/train/progress.hpp"
#include "measure.cuh"
#include "random_target.hpp"

namespace dflash_benchmark {

/// Weights that are there at once: a million numbers again and again.
class MadeUpWeights {
 public:
  explicit MadeUpWeights(const nlohmann::json& config) : shapes_(config), numbers_(1 << 20) {
    for (std::size_t i = 0; i < numbers_.size(); ++i) numbers_[i] = number(i, 5);
  }

  const dflash::TargetConfig& config() const { return shapes_.config(); }
  bool contains(std::string_view name) const { return shapes_.contains(name); }
  const dflash::TensorEntry& at(std::string_view name) const { return shapes_.at(name); }
  template <class T>
  void read(std::string_view name, const std::vector<index_t>& shape, T* out) const {
    const dflash::TensorEntry& entry = at(name);
    dflash::expects(entry.shape == shape, "made-up weights: another shape");
    const float size = shape.size() == 1 ? 0.0f : 0.03f, middle = shape.size() == 1 ? 1.0f : 0.0f;
    std::vector<T> piece(numbers_.size());
    for (std::size_t i = 0; i < piece.size(); ++i) piece[i] = T(middle + size * numbers_[i]);
    for (index_t done = 0; done < entry.size(); done += index_t(piece.size()))
      std::copy_n(piece.begin(), std::min(index_t(piece.size()), entry.size() - done), out + done);
  }

 private:
  RandomTarget shapes_;
  std::vector<float> numbers_;
};

}  // namespace dflash_benchmark

namespace {

using namespace dflash;
using namespace dflash_benchmark;
using B = CudaBackend<bfloat16>;

void measure(B& backend, const TargetModel<B>& target, index_t prompt_size, index_t new_tokens,
             int repeats) {
  const TargetConfig& config = target.config();
  const double head = double(config.vocabulary) * double(config.hidden),
               layers = double(TargetCut(config, Share{}).weights(config)) - 2 * head;
  const auto prompt = prompt_tokens(prompt_size, config.vocabulary);
  const std::vector<index_t> offsets{0, prompt_size};
  const TargetRequest capture{.layers = {0, config.layers / 2, config.layers - 1},
                              .logits = Logits::none},
      last{.layers = {}, .logits = Logits::last};
  double prefill = 1e30, decode = 1e30;
  for (int i = 0; i < repeats; ++i) {
    backend.synchronize();
    const double start = seconds_now();
    target.prefill(prompt, offsets, capture);
    backend.synchronize();
    prefill = std::min(prefill, seconds_now() - start);
  }
  for (int i = 0; i < repeats; ++i) {
    auto cache = target.cache();
    std::vector<std::int32_t> next = prompt_tokens(512, config.vocabulary);
    double start = 0;
    for (index_t made = 0; made <= new_tokens; ++made) {
      const auto output = target.forward(next, cache, last);
      Tensor<B, std::int32_t, 1> best(backend, {1});
      argmax_rows(backend, output.logits.view(), best.view());
      next.assign(1, 0);
      backend.download(best.view().data, next.data(), 1);
      if (made == 0) start = seconds_now();
    }
    decode = std::min(decode, seconds_now() - start);
  }
  const double rows = double(prompt_size);
  const double operations = 2 * layers * rows + 2 * rows * (rows + 1) *
                                                    double(config.heads * config.head_dim) *
                                                    double(config.layers);
  const double per_token = decode / double(new_tokens), bytes = 2 * (layers + head);
  std::printf("prefill of %td tokens with capture: %.0f tokens/s, %.0f TFLOP/s\n", prompt_size,
              rows / prefill, operations / prefill * 1e-12);
  std::printf("decoding behind 512 tokens: %.1f tokens/s, %.2f ms each, %.0f GB/s of weights\n",
              1 / per_token, per_token * 1e3, bytes / per_token * 1e-9);
}

}  // namespace

int main(int count, char** arguments) {
  index_t layers = 36, prompt = 4096, new_tokens = 64, repeats = 3;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string flag = arguments[i];
    const index_t value = std::max<index_t>(1, std::atoll(arguments[i + 1]));
    if (flag == "--layers")
      layers = value;
    else if (flag == "--prompt")
      prompt = value;
    else if (flag == "--new-tokens")
      new_tokens = value;
    else if (flag == "--repeats")
      repeats = value;
  }
  B backend;
  auto config = config_of_shape("qwen3-8b");
  config["num_hidden_layers"] = layers;
  const MadeUpWeights weights(config);
  const TargetModel<B> target(backend, weights.config(), weights);
  std::printf("%td layers of qwen3-8b in bfloat16\n", layers);
  measure(backend, target, prompt, new_tokens, int(repeats));
}
