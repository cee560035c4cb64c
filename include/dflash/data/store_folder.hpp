#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/data/shard_plan.hpp"
#include "dflash/io/disk_space.hpp"
#include "dflash/io/folder_lock.hpp"
#include "dflash/io/safetensors.hpp"

namespace dflash {

/// The folder of a store while it is written, by one writer or by several that share the missing
/// shards: its description, which shards are there, and the index that lists them. One process
/// owns it.
class StoreFolder {
 public:
  /// Begins a store, or opens the one there to continue. Error naming the first field in which that
  /// differs from the plan, with both values.
  StoreFolder(std::filesystem::path path, ShardPlan plan)
      : path_(std::move(path)),
        plan_(std::move(plan)),
        description_(plan_.description()),
        lock_(created(path_)) {
    const auto file = path_ / "store.json";
    indexed_ = indexed_shards();
    // A store without shards may come of a capture that could not start: it holds nothing to keep.
    if (indexed_ <= 0 && !has_shards())
      write_store_description(file, description_);
    else if (std::filesystem::exists(file))
      expect_same(file, read_store_description(file), description_);
    else
      throw Error(path_.string() + " has shards but no store.json");
    remove_temporaries(path_);
    for (index_t shard = 0; shard < plan_.shards(); ++shard)
      if (!is_whole(shard)) missing_.push_back(shard);
  }

  const std::filesystem::path& path() const { return path_; }
  const ShardPlan& plan() const { return plan_; }
  /// The shards that are still to be written, in ascending order; those behind the first are looked
  /// at only when the folder is opened.
  const std::vector<index_t>& missing() const { return missing_; }
  index_t missing_samples() const {
    index_t samples = 0;
    for (const index_t shard : missing_) samples += plan_.shard(shard).samples.size();
    return samples;
  }
  index_t missing_bytes() const {
    index_t bytes = 0;
    for (const index_t shard : missing_) bytes += plan_.file_bytes(shard);
    return bytes;
  }
  /// Error with both numbers if they do not fit on the disk.
  void expect_space() const { expect_disk_space(path_, missing_bytes()); }

  /// Lists the shards that have come, up to the first that has not.
  void update() {
    missing_.erase(missing_.begin(), std::find_if(missing_.begin(), missing_.end(),
                                                  [&](index_t shard) { return !is_whole(shard); }));
    const index_t listed = missing_.empty() ? plan_.shards() : missing_.front();
    if (listed != indexed_) write_index(listed);
  }

 private:
  static const std::filesystem::path& created(const std::filesystem::path& folder) {
    std::error_code why;
    std::filesystem::create_directories(folder, why);
    if (why) throw Error("cannot create " + folder.string() + ": " + why.message());
    return folder;
  }

  bool has_shards() const {
    for (index_t shard = 0; shard < plan_.shards(); ++shard)
      if (std::filesystem::exists(path_ / shard_name(shard))) return true;
    return false;
  }

  /// -1 where there is no index.
  index_t indexed_shards() const {
    const auto file = path_ / "index.safetensors";
    return std::filesystem::exists(file) ? SafetensorsFile(file).at("rows").size() : -1;
  }

  /// A file of a shard's name is complete; whether it is this store's shard its header says.
  bool is_whole(index_t shard) const {
    const auto file = path_ / shard_name(shard);
    std::error_code missing;
    const auto bytes = std::filesystem::file_size(file, missing);
    if (missing || index_t(bytes) != plan_.file_bytes(shard)) return false;
    try {
      return SafetensorsFile(file).metadata() == shard_metadata(description_, shard);
    } catch (const Error&) {
      return false;
    }
  }

  void write_index(index_t shards) {
    std::vector<std::int64_t> first_sample{0}, rows;
    for (index_t k = 0; k < shards; ++k) {
      first_sample.push_back(plan_.shard(k).samples.end);
      rows.push_back(plan_.shard(k).rows);
    }
    const TensorData tensors[] = {
        {"first_sample", DType::i64, {index_t(first_sample.size())}, first_sample.data()},
        {"rows", DType::i64, {index_t(rows.size())}, rows.data()}};
    write_safetensors(path_ / "index.safetensors", tensors);
    indexed_ = shards;
  }

  std::filesystem::path path_;
  ShardPlan plan_;
  StoreDescription description_;
  FolderLock lock_;
  index_t indexed_ = -1;  // shards that the index lists
  std::vector<index_t> missing_;
};

}  // namespace dflash
