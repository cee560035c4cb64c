#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dflash/dflash.hpp"

namespace dflash_benchmark {

using dflash::index_t;
using B = dflash::CpuBackend<float>;

/// A draft, and the batch of a training step.
struct TrainingShape {
  std::string name;
  dflash::DraftConfig config;
  index_t tokens = 0, anchors = 0, batch = 1;  // of a sample, of a sample, samples
  bool tied = false;                           // the target's head is its embedding
};

/// "tiny", "smollm2" or "qwen3-0.6b".
inline TrainingShape shape_named(const std::string& name) {
  TrainingShape shape;
  shape.name = name;
  dflash::DraftConfig& c = shape.config;
  shape.anchors = 64;
  index_t captured = 5;
  if (name == "tiny") {
    c.shape = {.hidden = 160, .intermediate = 480, .heads = 4, .kv_heads = 2, .head_dim = 32};
    c.vocabulary = 2048, c.layers = 2, c.block_size = 8;
    shape.tokens = 256, shape.batch = 4;
  } else if (name == "smollm2") {
    c.shape = {.hidden = 576, .intermediate = 1536, .heads = 9, .kv_heads = 3, .head_dim = 64};
    c.vocabulary = 49152, c.layers = 3, c.block_size = 8;
    shape.tokens = 512, shape.tied = true;
  } else if (name == "qwen3-0.6b") {
    c.shape = {.hidden = 1024, .intermediate = 3072, .heads = 16, .kv_heads = 8, .head_dim = 128};
    c.vocabulary = 151936, c.layers = 2, c.block_size = 16;
    shape.tokens = 1024, shape.tied = true;
  } else {
    throw dflash::Error("--shape " + name + " is unknown; it must be tiny, smollm2 or qwen3-0.6b");
  }
  for (index_t i = 0; i < captured; ++i) c.target_layer_ids.push_back(1 + i);
  c.target_layers = captured + 3;
  c.mask_token = std::int32_t(c.vocabulary - 1);
  c.sliding.assign(std::size_t(c.layers), false);
  return shape;
}

/// Evenly distributed numbers of the given root mean square.
template <class T>
void randomize(B& backend, dflash::View<T, 1> x, double size, std::uint64_t key) {
  const dflash::Random random(key);
  const double range = size * std::sqrt(12.0);
  backend.for_parts(x.size(), 64, [&](dflash::Range part) {
    for (index_t i = part.begin; i < part.end; ++i)
      x(i) = T(float((random.uniform(std::uint64_t(i)) - 0.5) * range));
  });
}

/// A target's ends, drawn at random: in bfloat16 for products in bf16, as such a target's files
/// have them.
class RandomEnds {
 public:
  RandomEnds(B& backend, const dflash::DraftConfig& config)
      : backend_(&backend),
        entry_{backend.precision() == dflash::CpuPrecision::bf16 ? dflash::DType::bf16
                                                                 : dflash::DType::f32,
               {config.vocabulary, config.shape.hidden},
               nullptr} {}

  // What the library asks of a source of weights.
  bool contains(std::string_view) const { return true; }
  const dflash::TensorEntry& at(std::string_view) const { return entry_; }
  template <class T>
  void read(std::string_view name, const std::vector<index_t>&, T* out) const {
    const std::uint64_t key = name == dflash::TargetKeys().embedding ? 1 : 2;
    randomize(*backend_, dflash::View<T, 1>{out, {entry_.size()}}, 0.02, key);
  }

 private:
  B* backend_;
  dflash::TensorEntry entry_;
};

/// All that a training step reads: made up, the same in every run, every token supervised.
struct TrainingProblem {
  TrainingShape shape;
  dflash::FrozenTarget<B> target;
  dflash::Parameters<B> weights;
  std::vector<dflash::MemorySample> samples;
  std::vector<dflash::Blocks> blocks;

  TrainingProblem(B& backend, TrainingShape of)
      : shape(std::move(of)),
        target(backend, RandomEnds(backend, shape.config), shape.tied),
        weights(backend, shape.config) {
    const dflash::DraftConfig& c = shape.config;
    for (std::size_t i = 0; i < weights.slots().size(); ++i) {
      const auto& slot = weights.slots()[i];
      const auto view = weights.flat().rows({slot.offset, slot.offset + slot.size});
      if (slot.shape.size() == 2)
        randomize(backend, view, c.initializer_range, 3 + i);
      else
        fill(backend, view, 1);
    }
    for (index_t i = 0; i < shape.batch; ++i) add_sample(backend, std::uint64_t(i));
  }

  /// Everything in one file, for programs that are to compute the same.
  void write(const std::filesystem::path& path) const {
    using dflash::DType;
    const index_t n = shape.batch, tokens = shape.tokens, width = shape.config.feature_width();
    std::vector<std::int32_t> ids;
    std::vector<index_t> anchors;
    std::vector<float> features(std::size_t(n * tokens * width));
    for (std::size_t i = 0; i < samples.size(); ++i) {
      const auto& own = samples[i].text.tokens;
      ids.insert(ids.end(), own.begin(), own.end());
      anchors.insert(anchors.end(), blocks[i].anchors.begin(), blocks[i].anchors.end());
      samples[i].features->read({0, tokens}, &features[i * std::size_t(tokens * width)]);
    }
    const auto matrix = [](const char* name, const dflash::StoredRows<const float>& m) {
      const DType dtype = m.narrow() ? DType::bf16 : DType::f32;
      const void* const data = m.visit([](const auto& view) -> const void* { return view.data; });
      return dflash::TensorData{name, dtype, {m.shape[0], m.shape[1]}, data};
    };
    std::vector<dflash::TensorData> tensors{
        matrix("embed.weight", target.embedding()),
        {"input_ids", DType::i32, {n, tokens}, ids.data()},
        {"anchors", DType::i64, {n, shape.anchors}, anchors.data()},
        {"hidden_states", DType::f32, {n, tokens, width}, features.data()}};
    if (!shape.tied) tensors.push_back(matrix("lm_head.weight", target.lm_head()));
    for (const auto& slot : weights.slots())
      tensors.push_back({slot.name, DType::f32, slot.shape, weights.flat().data + slot.offset});
    dflash::write_safetensors(path, tensors);
  }

 private:
  void add_sample(B& backend, std::uint64_t i) {
    const dflash::DraftConfig& c = shape.config;
    dflash::TokenizedSample text{"sample " + std::to_string(i), {}, {}};
    const dflash::Random random(1000, i);
    for (index_t t = 0; t < shape.tokens; ++t) {
      text.tokens.push_back(
          std::int32_t(random.integer(std::uint64_t(t)) % std::uint64_t(c.vocabulary - 1)));
      text.loss_mask.push_back(1);
    }
    const auto add = [&](auto features) {
      using T = typename decltype(features)::value_type;
      randomize(backend, dflash::View<T, 1>{features.data(), {index_t(features.size())}}, 1,
                2000 + i);
      samples.push_back({std::move(text), std::make_shared<dflash::MemoryFeatures>(
                                              std::move(features), c.feature_width())});
    };
    // As stores keep them.
    const auto size = std::size_t(shape.tokens * c.feature_width());
    if (backend.precision() == dflash::CpuPrecision::bf16)
      add(std::vector<dflash::bfloat16>(size));
    else
      add(std::vector<float>(size));
    blocks.push_back(sample_blocks(samples.back(), {.count = shape.anchors, .size = c.block_size},
                                   /*seed=*/1, /*epoch=*/0));
  }
};

/// Multiply-adds of a step, counted as two operations.
struct TrainingOperations {
  double forward = 0, head = 0, backward = 0;

  TrainingOperations(const TrainingShape& shape, const dflash::Batch<B>& batch) {
    const dflash::DFlashShape& s = shape.config.shape;
    const double rows = double(batch.tokens.size()), context = double(batch.context_total),
                 hidden = double(s.hidden), q = double(s.heads * s.head_dim),
                 kv = double(s.kv_heads * s.head_dim), layers = double(shape.config.layers);
    double pairs = 0;
    const auto mask = batch.mask();
    for (index_t n = 0; n < mask.blocks(); ++n)
      pairs += double((mask.context(n, 0).size() + mask.own(n, 0).size()) * mask.block_size);
    const double fuse = 2 * context * hidden * double(shape.config.feature_width());
    const double products =
        2 * layers *
        (context * 2 * kv * hidden + rows * hidden * (2 * q + 2 * kv + 3 * double(s.intermediate)));
    const double attention = 4 * layers * pairs * q;
    forward = fuse + products + attention;
    backward = fuse + 2 * products + 2.5 * attention;
    head = 4 * double(batch.tokens_supervised()) * hidden * double(shape.config.vocabulary);
  }
  double all() const { return forward + head + backward; }
};

}  // namespace dflash_benchmark
