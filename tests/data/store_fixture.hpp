#pragma once

#include <bit>
#include <filesystem>
#include <string>
#include <vector>

#include "dflash/core/random.hpp"
#include "dflash/data/offline_shard_dataset.hpp"
#include "dflash/data/shard_writer.hpp"
#include "io/temporary_folder.hpp"

/// A small data set with features that are a function of the sample and the row.
struct StoreFixture {
  dflash::StoreDescription description;
  std::vector<dflash::TokenizedSample> samples;

  explicit StoreFixture(dflash::index_t count, dflash::DType dtype = dflash::DType::f32,
                        const std::string& model_type = "dflash") {
    description.model_type = model_type;
    description.target_name = "small";
    description.target_fingerprint = "xxh3:1";
    description.layer_ids = {1, 5, 3};
    description.hidden_size = 4;
    description.dtype = dtype;
    description.rope_parameters = {{"rope_theta", 10000.0}};
    description.tokenizer_fingerprint = "xxh3:2";
    description.block_size = 4;
    description.sample_filter = "min-loss";
    description.shard_bytes = 1500;
    const dflash::Random random(7);
    for (dflash::index_t i = 0; i < count; ++i) {
      dflash::TokenizedSample sample{"id-" + std::to_string(i * i), {}, {}};
      const auto length = 1 + random.integer(std::uint64_t(i)) % 13;
      for (std::uint64_t t = 0; t < length; ++t) {
        sample.tokens.push_back(std::int32_t(100 * i + dflash::index_t(t)));
        sample.loss_mask.push_back(t % 2);
      }
      samples.push_back(sample);
    }
  }

  dflash::ShardPlan plan() const {
    dflash::ShardPlan plan(description);
    for (const auto& sample : samples) plan.add(sample);
    return plan;
  }

  /// (S, width) of a sample; all values are exact in bfloat16.
  std::vector<float> rows(dflash::index_t i, dflash::index_t width) const {
    const dflash::Random random{std::uint64_t(i), std::uint64_t(width)};
    std::vector<float> values(samples[std::size_t(i)].tokens.size() * std::size_t(width));
    for (std::size_t k = 0; k < values.size(); ++k)
      values[k] = static_cast<float>(dflash::bfloat16(float(random.normal(k))));
    return values;
  }

  void write_next(dflash::ShardWriter& writer) const {
    const auto i = writer.next();
    const auto& sample = samples[std::size_t(i)];
    const auto length = dflash::index_t(sample.tokens.size()), width = description.width();
    const auto features = rows(i, width), last = rows(i, description.hidden_size);
    writer.write(sample, dflash::View<const float, 2>{features.data(), {length, width}},
                 {last.data(), {length, description.hidden_size}});
  }

  /// Goes on with the store in the folder, for so many samples at most.
  void capture(const std::filesystem::path& folder, dflash::index_t most = 1 << 30) const {
    dflash::ShardWriter writer(folder, plan());
    while (writer.next() < dflash::index_t(samples.size()) && most-- > 0) write_next(writer);
  }
};

inline std::vector<float> all_rows(const dflash::FeatureRows& rows) {
  std::vector<float> values(std::size_t(rows.rows() * rows.width()));
  rows.read({0, rows.rows()}, values.data());
  return values;
}
