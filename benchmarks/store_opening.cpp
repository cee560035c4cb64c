// How long opening a store takes: its description and index are read, no shard is touched.
//   store_opening [--samples N] [--shards M]

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <random>

#include "dflash/data/offline_shard_dataset.hpp"
#include "dflash/io/safetensors_writer.hpp"
#include "machine_peak.hpp"

using namespace dflash;
using namespace dflash_benchmark;

namespace {

/// The description and the index of a store of samples of 1000 rows each, without its shards.
void write_index(const std::filesystem::path& folder, index_t samples, index_t shards) {
  StoreDescription description;
  description.target_name = "target";
  description.target_fingerprint = "xxh3:1";
  description.layer_ids = {1, 9, 17, 25, 33};
  description.hidden_size = 4096;
  description.rope_parameters = {{"rope_theta", 1e6}};
  description.tokenizer_fingerprint = "xxh3:2";
  description.block_size = 16;
  description.sample_filter = "adjacent-pair";
  description.samples = samples;
  description.rows = 1000 * samples;
  description.data_fingerprint = "xxh3:3";
  write_store_description(folder / "store.json", description);
  std::vector<index_t> first{0}, rows;
  for (index_t k = 0; k < shards; ++k) {
    first.push_back(samples * (k + 1) / shards);
    rows.push_back(1000 * (first.back() - first[std::size_t(k)]));
  }
  const std::vector<TensorData> tensors{{"first_sample", DType::i64, {shards + 1}, first.data()},
                                        {"rows", DType::i64, {shards}, rows.data()}};
  write_safetensors(folder / "index.safetensors", tensors);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times the opening of a store.", "store_opening");
  index_t samples = 1000000, shards = 160000;
  app.add_option("--samples", samples)->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--shards", shards)->capture_default_str()->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  const auto folder = std::filesystem::temp_directory_path() /
                      ("store_opening_" + std::to_string(std::random_device()()));
  std::filesystem::create_directory(folder);
  write_index(folder, samples, shards);
  index_t size = 0;
  const double first = seconds_of([&] { size = OfflineShardDataset(folder).size(); });
  const double best = best_seconds(10, [&] { size = OfflineShardDataset(folder).size(); });
  std::filesystem::remove_all(folder);
  std::printf("%lld samples in %lld shards: %.2f ms, at best %.2f ms\n", (long long)size,
              (long long)shards, first * 1e3, best * 1e3);
}
