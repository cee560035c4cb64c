#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/data/sample.hpp"
#include "dflash/data/store_description.hpp"
#include "dflash/data/store_shard.hpp"
#include "dflash/io/json_file.hpp"
#include "dflash/io/safetensors.hpp"

namespace dflash {

/// What a trainer needs a store to be; what is empty or zero is not checked.
struct StoreExpectations {
  std::string model_type = {}, target_fingerprint = {}, tokenizer_fingerprint = {};
  std::vector<index_t> layer_ids = {};
  index_t hidden_size = 0;
  bool allow_unfinished = false;  // a store whose capture has not written all samples yet
};

/// The samples of a store. Opening reads store.json and the index alone; shards are mapped when a
/// sample of theirs is asked for. May be used by several threads at once.
class OfflineShardDataset {
 public:
  /// Error naming the field and both values if the store is not as expected.
  explicit OfflineShardDataset(std::filesystem::path folder, const StoreExpectations& expected = {})
      : folder_(std::move(folder)), description_(read_store_description(folder_ / "store.json")) {
    read_index();
    compare(expected);
    if (stored() != description_.samples && !expected.allow_unfinished)
      throw Error(folder_.string() + " is not finished: it has " + std::to_string(stored()) +
                  " of " + std::to_string(description_.samples) +
                  " samples; run the same capture again to continue it");
  }

  const StoreDescription& description() const { return description_; }
  const std::filesystem::path& folder() const { return folder_; }
  index_t size() const { return stored() - index_t(left_out_.size()); }
  index_t rows() const { return rows_total_; }

  /// Its id, tokens and mask are verified here, a row of its features when it is read. What it
  /// points to lives as long as its features. Error naming the file and the sample.
  Sample operator[](index_t i) const {
    const auto [shard, local] = find(i);
    shard->verify(local);
    return {std::string(shard->id_of(local)), shard->tokens_of(local), shard->loss_mask_of(local),
            std::make_shared<StoreRows>(shard, 0, local)};
  }

  /// The target's last hidden states of a sample, in EAGLE3 stores.
  std::shared_ptr<const FeatureRows> last_hidden(index_t i) const {
    expects(description_.has_last_hidden(), "only EAGLE3 stores have last hidden states");
    const auto [shard, local] = find(i);
    return std::make_shared<StoreRows>(shard, 1, local);
  }

  /// Reads everything. Returns a sentence for each shard or sample that is damaged.
  std::vector<std::string> verify() const {
    return examine([](index_t) {});
  }

  /// The same, and the samples that are damaged are left out from now on: the others have numbers
  /// without gaps. No other thread may use the dataset meanwhile.
  std::vector<std::string> leave_damaged_out() {
    kept_.clear(), left_out_.clear();
    auto problems = examine([&](index_t i) { kept_.push_back(i); });
    for (index_t i = 0; i < stored(); ++i)
      if (!std::binary_search(kept_.begin(), kept_.end(), i)) left_out_.push_back(i);
    return problems;
  }
  /// The samples that are left out, by their numbers in the store.
  const std::vector<index_t>& left_out() const { return left_out_; }

 private:
  using SharedShard = std::shared_ptr<const StoreShard>;
  struct Mapped {
    SharedShard shard;
    std::uint64_t last_use = 0;
  };

  index_t shards() const { return index_t(rows_.size()); }
  index_t stored() const { return first_sample_.back(); }

  void read_index() {
    const SafetensorsFile file(folder_ / "index.safetensors");
    const auto fail = [&](const std::string& why) {
      throw Error(file.path().string() + ": " + why);
    };
    first_sample_ = file.read<index_t>("first_sample");
    rows_ = file.read<index_t>("rows");
    if (first_sample_.size() != rows_.size() + 1)
      fail("tensor \"first_sample\" has " + std::to_string(first_sample_.size()) +
           " entries where " + std::to_string(rows_.size() + 1) + " are expected");
    if (first_sample_[0] != 0 || !std::is_sorted(first_sample_.begin(), first_sample_.end()))
      fail("tensor \"first_sample\" does not count up from 0");
    for (const index_t rows : rows_)
      if (rows < 0 || __builtin_add_overflow(rows_total_, rows, &rows_total_))
        fail("tensor \"rows\" has the entry " + std::to_string(rows));
    const auto& d = description_;
    const bool finished = stored() == d.samples;
    if (stored() > d.samples || rows_total_ > d.rows || (finished && rows_total_ != d.rows))
      fail("it lists " + std::to_string(stored()) + " samples with " + std::to_string(rows_total_) +
           " rows, but store.json says " + std::to_string(d.samples) + " with " +
           std::to_string(d.rows));
  }

  void compare(const StoreExpectations& e) const {
    const auto check = [&](const char* field, const nlohmann::json& found,
                           const nlohmann::json& wanted, bool asked) {
      if (asked && found != wanted)
        throw Error((folder_ / "store.json").string() + ": field \"" + field + "\" is " +
                    text_of(found) + ", but the trainer needs " + text_of(wanted));
    };
    const auto& d = description_;
    check("model_type", d.model_type, e.model_type, !e.model_type.empty());
    check("hidden_size", d.hidden_size, e.hidden_size, e.hidden_size != 0);
    check("layer_ids", d.layer_ids, e.layer_ids, !e.layer_ids.empty());
    check("target_fingerprint", d.target_fingerprint, e.target_fingerprint,
          !e.target_fingerprint.empty());
    check("tokenizer_fingerprint", d.tokenizer_fingerprint, e.tokenizer_fingerprint,
          !e.tokenizer_fingerprint.empty());
  }

  StoreShard open(index_t k) const {
    const index_t first = first_sample_[std::size_t(k)];
    return StoreShard(folder_ / shard_name(k), description_, shard_metadata(description_, k), first,
                      first_sample_[std::size_t(k) + 1] - first, rows_[std::size_t(k)]);
  }

  std::pair<SharedShard, index_t> find(index_t i) const {
    expects(i >= 0 && i < size(), "a sample's index must be below the dataset's size");
    if (!left_out_.empty()) i = kept_[std::size_t(i)];
    const auto after = std::upper_bound(first_sample_.begin(), first_sample_.end(), i);
    const index_t k = after - first_sample_.begin() - 1;
    return {mapped(k), i - first_sample_[std::size_t(k)]};
  }

  SharedShard mapped(index_t k) const {
    // A process may have some 65,000 mappings: those not used for longest are given up.
    constexpr std::size_t most_shards = 4096;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = cache_.find(k);
    if (found != cache_.end()) {
      found->second.last_use = ++uses_;
      return found->second.shard;
    }
    if (cache_.size() >= most_shards)
      cache_.erase(std::min_element(cache_.begin(), cache_.end(), [](auto& a, auto& b) {
        return a.second.last_use < b.second.last_use;
      }));
    const auto shard = std::make_shared<const StoreShard>(open(k));
    cache_[k] = {shard, ++uses_};
    return shard;
  }

  /// Reads everything, and calls sound(i) for each sample of the store that is.
  template <class Sound>
  std::vector<std::string> examine(Sound sound) const {
    std::vector<std::string> problems;
    for (index_t k = 0; k < shards(); ++k) {
      try {
        const StoreShard shard = open(k);
        index_t end = 0;
        for (index_t i = 0; i < shard.samples(); ++i)
          if (is_sound(shard, i, end, problems)) sound(first_sample_[std::size_t(k)] + i);
        if (end != shard.rows())
          problems.push_back(shard.path().string() + ": its samples have " + std::to_string(end) +
                             " rows, but the index says " + std::to_string(shard.rows()));
      } catch (const Error& error) {
        problems.push_back(error.what());
      }
    }
    return problems;
  }

  bool is_sound(const StoreShard& shard, index_t i, index_t& end,
                std::vector<std::string>& problems) const {
    try {
      const Range rows = shard.rows_of(i);
      const index_t expected = std::exchange(end, rows.end);
      if (rows.begin != expected)
        throw Error(shard.path().string() + ": row_offsets overlap or leave a gap at sample " +
                    std::to_string(i) + " of the shard");
      shard.verify(i);
      std::vector<float> row;
      for (std::size_t m = 0; m < shard.matrices(); ++m) {
        row.resize(std::size_t(shard.width(m)));
        for (index_t r = 0; r < rows.size(); ++r) shard.read(m, i, {r, r + 1}, row.data());
      }
      return true;
    } catch (const Error& error) {
      problems.push_back(error.what());
      return false;
    }
  }

  std::filesystem::path folder_;
  StoreDescription description_;
  std::vector<index_t> first_sample_, rows_;
  index_t rows_total_ = 0;
  std::vector<index_t> kept_, left_out_;  // kept: of use if some are left out
  mutable std::mutex mutex_;
  mutable std::map<index_t, Mapped> cache_;
  mutable std::uint64_t uses_ = 0;
};

}  // namespace dflash
