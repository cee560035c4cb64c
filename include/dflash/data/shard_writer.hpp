#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/data/open_shard.hpp"
#include "dflash/data/shard_plan.hpp"
#include "dflash/io/disk_space.hpp"
#include "dflash/io/folder_lock.hpp"
#include "dflash/io/safetensors.hpp"

namespace dflash {

/// Writes samples and their features into a store, shard by shard as planned:
///
///   while (writer.next() < plan.size()) writer.write(samples[writer.next()], features);
///
/// A shard appears when it is complete and on disk. A writer of the same plan continues where a
/// killed one was, at the beginning of its open shard; the store ends up the same byte for byte.
class ShardWriter {
 public:
  /// Begins a store in a folder, or opens the one there to continue. Error naming the first field
  /// in which that differs from the plan, with both values.
  ShardWriter(std::filesystem::path folder, ShardPlan plan)
      : folder_(std::move(folder)),
        plan_(std::move(plan)),
        description_(plan_.description()),
        lock_(created(folder_)) {
    const auto path = folder_ / "store.json";
    const index_t indexed = indexed_shards();
    // A store without shards may come of a capture that could not start: it holds nothing to keep.
    if (indexed <= 0 && !std::filesystem::exists(folder_ / shard_name(0)))
      write_store_description(path, description_);
    else if (std::filesystem::exists(path))
      expect_same(path, read_store_description(path), description_);
    else
      throw Error(folder_.string() + " has shards but no store.json");
    remove_temporaries(folder_);
    // A shard that the index does not list yet is written again.
    while (shard_ < indexed && is_whole(shard_)) ++shard_;
    next_ = shard_ < plan_.shards() ? plan_.shard(shard_).samples.begin : plan_.size();
    if (shard_ != indexed) write_index();
  }

  /// The sample that is to be written next.
  index_t next() const { return next_; }
  /// Bytes that are still to be written, those of the open shard included.
  index_t remaining_bytes() const { return plan_.bytes(shard_); }
  /// Error with both numbers if they do not fit on the disk.
  void expect_space() const { expect_disk_space(folder_, remaining_bytes()); }

  /// The next sample.   features (S, C * H) float or bfloat16  last_hidden (S, H), only for EAGLE3
  template <class T>
  void write(const TokenizedSample& sample, View<T, 2> features, In<T, 2> last_hidden = {}) {
    expects(features.shape[0] == index_t(sample.tokens.size()), "a token needs one row");
    begin(sample);
    append(features, last_hidden);
  }

  /// The same in pieces: first the sample, then its rows in order.
  void begin(const TokenizedSample& sample) {
    expects(next_ < plan_.size(), "all samples of the plan are written");
    expects(!open_ || open_->missing_rows() == 0, "the sample before lacks rows");
    if (sample_checksum(sample) != plan_.checksum(next_))
      throw Error("sample " + std::to_string(next_) + " (" + in_quotes(sample.id) +
                  ") is not the one that was planned there");
    if (!open_)
      open_.emplace(folder_ / shard_name(shard_), description_, plan_.shard(shard_),
                    shard_metadata(description_, shard_));
    open_->begin(sample);
    ++next_;
    if (sample.tokens.empty()) close_full_shard();
  }

  template <class T>
  void append(View<T, 2> features, In<T, 2> last_hidden = {}) {
    if (features.shape[0] == 0) return;
    expects(open_.has_value(), "rows need a sample");
    open_->template append<std::remove_const_t<T>>(features, last_hidden);
    close_full_shard();
  }

 private:
  static const std::filesystem::path& created(const std::filesystem::path& folder) {
    std::error_code why;
    std::filesystem::create_directories(folder, why);
    if (why) throw Error("cannot create " + folder.string() + ": " + why.message());
    return folder;
  }

  /// -1 where there is no index.
  index_t indexed_shards() const {
    const auto path = folder_ / "index.safetensors";
    if (!std::filesystem::exists(path)) return -1;
    return std::min(SafetensorsFile(path).at("rows").size(), plan_.shards());
  }

  bool is_whole(index_t shard) const {
    std::error_code missing;
    const auto bytes = std::filesystem::file_size(folder_ / shard_name(shard), missing);
    return !missing && index_t(bytes) == plan_.file_bytes(shard);
  }

  void close_full_shard() {
    if (open_->missing_rows() > 0 || next_ < plan_.shard(shard_).samples.end) return;
    open_->commit();
    open_.reset();
    ++shard_;
    write_index();
  }

  void write_index() const {
    std::vector<std::int64_t> first_sample{0}, rows;
    for (index_t k = 0; k < shard_; ++k) {
      first_sample.push_back(plan_.shard(k).samples.end);
      rows.push_back(plan_.shard(k).rows);
    }
    const TensorData tensors[] = {{"first_sample", DType::i64, {shard_ + 1}, first_sample.data()},
                                  {"rows", DType::i64, {shard_}, rows.data()}};
    write_safetensors(folder_ / "index.safetensors", tensors);
  }

  std::filesystem::path folder_;
  ShardPlan plan_;
  StoreDescription description_;
  FolderLock lock_;
  index_t shard_ = 0, next_ = 0;
  std::optional<OpenShard> open_;
};

}  // namespace dflash
