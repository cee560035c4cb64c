#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/data/store_format.hpp"

namespace dflash {

/// Which samples go to which shard of a store: decided from the tokenized samples alone, before any
/// of their features exist. Add all samples in order, then hand it to a ShardWriter.
class ShardPlan {
 public:
  struct Shard {
    Range samples;
    index_t rows = 0, id_bytes = 0;
  };

  explicit ShardPlan(StoreDescription description) : description_(std::move(description)) {
    check(description_, "the store's description");
    fixed_bytes_ = shard_data_bytes(description_, 0, 0, 0);
    bytes_per_sample_ = shard_data_bytes(description_, 1, 0, 0) - fixed_bytes_;
    bytes_per_row_ = shard_data_bytes(description_, 0, 1, 0) - fixed_bytes_;
  }

  /// A sample goes to the open shard unless that would grow beyond `shard_bytes`.
  void add(const TokenizedSample& sample) {
    const auto rows = index_t(sample.tokens.size()), id_bytes = index_t(sample.id.size());
    if (rows != index_t(sample.loss_mask.size()))
      throw Error("sample " + in_quotes(sample.id) + " has " + std::to_string(rows) +
                  " tokens but a loss mask of " + std::to_string(sample.loss_mask.size()));
    if (shards_.empty() ||
        data_bytes(shards_.back()) + bytes_per_sample_ + rows * bytes_per_row_ + id_bytes >
            description_.shard_bytes)
      shards_.push_back({{size(), size()}, 0, 0});
    Shard& shard = shards_.back();
    shard.samples.end += 1;
    shard.rows += rows;
    shard.id_bytes += id_bytes;
    checksums_.push_back(sample_checksum(sample));
    description_.samples += 1;
    description_.rows += rows;
  }

  /// The store's description with the counts and the fingerprint of what was added.
  StoreDescription description() const {
    StoreDescription d = description_;
    d.data_fingerprint = Fingerprint().add(checksums_.data(), size() * 8).text();
    return d;
  }

  index_t size() const { return description_.samples; }
  index_t rows() const { return description_.rows; }
  index_t shards() const { return index_t(shards_.size()); }
  const Shard& shard(index_t k) const { return shards_[std::size_t(k)]; }
  std::uint64_t checksum(index_t sample) const { return checksums_[std::size_t(sample)]; }

  /// Bytes of the file of a shard.
  index_t file_bytes(index_t k) const {
    const Shard& s = shard(k);
    const auto tensors = shard_tensors(description_, s.samples.size(), s.rows, s.id_bytes);
    // All stores' metadata have the length of this one's.
    return SafetensorsLayout(tensors, shard_metadata(description_, k), shard_alignment).bytes;
  }

  /// Bytes of all shards.
  index_t bytes() const {
    index_t total = 0;
    for (index_t k = 0; k < shards(); ++k) total += file_bytes(k);
    return total;
  }

  /// The samples of some shards, given in ascending order, as ranges that do not touch.
  std::vector<Range> samples(const std::vector<index_t>& some) const {
    std::vector<Range> ranges;
    for (const index_t k : some)
      if (!ranges.empty() && ranges.back().end == shard(k).samples.begin)
        ranges.back().end = shard(k).samples.end;
      else
        ranges.push_back(shard(k).samples);
    return ranges;
  }

  /// Cuts some shards, given in ascending order, into runs of at least `rows` rows (the last may
  /// have fewer): what several writers take in turn.
  std::vector<std::vector<index_t>> runs(const std::vector<index_t>& some, index_t rows) const {
    std::vector<std::vector<index_t>> result;
    index_t have = rows;
    for (const index_t k : some) {
      if (have >= rows) {
        result.emplace_back();
        have = 0;
      }
      result.back().push_back(k);
      have += shard(k).rows;
    }
    return result;
  }

 private:
  index_t data_bytes(const Shard& s) const {
    return fixed_bytes_ + s.samples.size() * bytes_per_sample_ + s.rows * bytes_per_row_ +
           s.id_bytes;
  }

  StoreDescription description_;
  index_t fixed_bytes_ = 0, bytes_per_sample_ = 0, bytes_per_row_ = 0;
  std::vector<Shard> shards_;
  std::vector<std::uint64_t> checksums_;
};

}  // namespace dflash
