#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/data/open_shard.hpp"
#include "dflash/data/shard_plan.hpp"
#include "dflash/data/store_folder.hpp"

namespace dflash {

/// Writes samples and their features into a store, shard by shard as planned:
///
///   while (writer.next() < plan.size()) writer.write(samples[writer.next()], features);
///
/// A shard appears when it is complete and on disk. A writer of the same plan continues where a
/// killed one was, with the shards that are missing; the store ends up the same byte for byte.
class ShardWriter {
 public:
  /// Writes all shards that are missing in a folder: see StoreFolder.
  ShardWriter(std::filesystem::path folder, ShardPlan plan)
      : ShardWriter(std::make_unique<StoreFolder>(std::move(folder), std::move(plan))) {}

  /// Writes some shards of the plan, in ascending order, into the folder of a store that somebody
  /// else has begun and will complete.
  ShardWriter(std::filesystem::path folder, const ShardPlan& plan, std::vector<index_t> shards)
      : folder_(std::move(folder)),
        plan_(plan),
        description_(plan.description()),
        shards_(std::move(shards)) {
    go_on();
  }

  /// The sample that is to be written next; the plan's size if none is.
  index_t next() const { return next_; }

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
    name_ = "sample " + std::to_string(next_) + " (" + in_quotes(sample.id) + ")";
    if (sample_checksum(sample) != plan_.checksum(next_))
      throw Error(name_ + " is not the one that was planned there");
    if (!open_)
      open_.emplace(folder_ / shard_name(shards_[shard_]), description_,
                    plan_.shard(shards_[shard_]), shard_metadata(description_, shards_[shard_]));
    open_->begin(sample);
    ++next_;
    if (sample.tokens.empty()) close_full_shard();
  }

  /// An error if one of the numbers is not finite.
  template <class T>
  void append(View<T, 2> features, In<T, 2> last_hidden = {}) {
    if (features.shape[0] == 0) return;
    expects(open_.has_value(), "rows need a sample");
    if (!all_finite(features) || !all_finite(last_hidden))
      throw Error(name_ + " has hidden states that are not finite");
    open_->template append<std::remove_const_t<T>>(features, last_hidden);
    close_full_shard();
  }

 private:
  explicit ShardWriter(std::unique_ptr<StoreFolder> store)
      : ShardWriter(store->path(), store->plan(), store->missing()) {
    store_ = std::move(store);
    store_->update();
  }

  template <class T>
  static bool all_finite(View<T, 2> rows) {
    return std::all_of(rows.data, rows.data + rows.size(),
                       [](T x) { return std::isfinite(static_cast<float>(x)); });
  }

  void go_on() {
    next_ = shard_ < shards_.size() ? plan_.shard(shards_[shard_]).samples.begin : plan_.size();
  }

  void close_full_shard() {
    if (open_->missing_rows() > 0 || next_ < plan_.shard(shards_[shard_]).samples.end) return;
    open_->commit();
    open_.reset();
    ++shard_;
    go_on();
    if (store_) store_->update();
  }

  std::filesystem::path folder_;
  ShardPlan plan_;
  StoreDescription description_;
  std::unique_ptr<StoreFolder> store_;  // where no one else completes the store
  std::vector<index_t> shards_;
  std::size_t shard_ = 0;  // the open one, or the next
  index_t next_ = 0;
  std::string name_;  // of the sample whose rows come
  std::optional<OpenShard> open_;
};

}  // namespace dflash
