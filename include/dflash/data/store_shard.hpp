#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/data/row_codec.hpp"
#include "dflash/data/store_format.hpp"
#include "dflash/io/safetensors.hpp"

namespace dflash {

/// A mapped shard of a store. Its header is checked against the store's description when it is
/// opened, a sample's own bytes when it is asked for, a row when it is read.
class StoreShard {
 public:
  StoreShard(const std::filesystem::path& path, const StoreDescription& d,
             const std::map<std::string, std::string>& metadata, index_t first_sample,
             index_t samples, index_t rows)
      : file_(path), dtype_(d.dtype), first_sample_(first_sample), rows_(rows) {
    if (file_.metadata() != metadata)
      throw Error(path.string() + " belongs to another store, or to another place in this one");
    for (const TensorData& expected :
         shard_tensors(d, samples, rows, file_.at("id_bytes").size())) {
      const TensorEntry& found = file_.at(expected.name);
      if (found.dtype != expected.dtype || found.shape != expected.shape)
        throw Error(path.string() + ": tensor " + in_quotes(expected.name) + " is " + text(found) +
                    " where the store's description and index say " +
                    text({expected.dtype, expected.shape, nullptr}));
    }
    for (const RowMatrix& m : row_matrices(d)) {
      Matrix matrix{m.name, m.width, file_.at(m.name).data, array<std::uint64_t>(m.checksums), {}};
      if (dtype_ == DType::f8_e4m3) matrix.scales = array<float>(m.scale);
      matrices_.push_back(std::move(matrix));
    }
    tokens_ = array<std::int32_t>("tokens");
    loss_mask_ = array<std::uint8_t>("loss_mask");
    row_offsets_ = array<std::int64_t>("row_offsets");
    id_offsets_ = array<std::int64_t>("id_offsets");
    id_bytes_ = array<std::uint8_t>("id_bytes");
    sample_checksums_ = array<std::uint64_t>("sample_checksums");
  }

  const std::filesystem::path& path() const { return file_.path(); }
  index_t samples() const { return sample_checksums_.size; }
  index_t rows() const { return rows_; }
  index_t width(std::size_t matrix) const { return matrices_[matrix].width; }
  DType dtype() const { return dtype_; }
  std::size_t matrices() const { return matrices_.size(); }

  /// Where a sample of this shard lies. Error if its offsets are impossible.
  Range rows_of(index_t i) const { return part(row_offsets_, "row_offsets", i, rows_); }

  std::string_view id_of(index_t i) const {
    const Range range = part(id_offsets_, "id_offsets", i, id_bytes_.size);
    return {reinterpret_cast<const char*>(id_bytes_.data) + range.begin, std::size_t(range.size())};
  }

  View<const std::int32_t, 1> tokens_of(index_t i) const {
    const Range range = rows_of(i);
    return {tokens_.data + range.begin, {range.size()}};
  }
  View<const std::uint8_t, 1> loss_mask_of(index_t i) const {
    const Range range = rows_of(i);
    return {loss_mask_.data + range.begin, {range.size()}};
  }

  /// Error naming the sample if its id, tokens and mask are not what was written.
  void verify(index_t i) const {
    if (sample_checksum(id_of(i), tokens_of(i), loss_mask_of(i)) != sample_checksums_.data[i])
      throw Error(path().string() + ": sample " + name_of_sample(i) +
                  ": its id, tokens and loss_mask do not match their checksum");
  }

  /// Rows [range) of sample i in the type asked for, each verified.      out (range, width)
  template <class T>
  void read(std::size_t matrix, index_t i, Range range, T* out) const {
    const Matrix& m = matrices_[matrix];
    const index_t bytes = m.width * size_of(dtype_), first = rows_of(i).begin;
    // Memory feeds a copy faster than a checksum, and a checksum faster than a conversion.
    const bool copied = dtype_ == dtype_of<T>();
    for (index_t row = range.begin; row < range.end; ++row, out += m.width) {
      const std::byte* stored = m.data + (first + row) * bytes;
      const float scale = m.scales.data != nullptr ? m.scales.data[first + row] : 0;
      const auto verify = [&] {
        if (row_checksum(stored, bytes, scale) != m.checksums.data[first + row])
          throw Error(path().string() + ": sample " + name_of_sample(i) + ": row " +
                      std::to_string(row) + " of " + m.name + " does not match its checksum");
      };
      if (!copied) verify();
      decode_row(stored, m.width, dtype_, scale, out);
      if (copied) verify();
    }
  }

 private:
  /// Elements in the mapping, or a copy of them where they are not aligned there.
  template <class T>
  struct Array {
    const T* data = nullptr;
    index_t size = 0;
    std::vector<T> copy;
  };
  struct Matrix {
    std::string name;
    index_t width;
    const std::byte* data;
    Array<std::uint64_t> checksums;
    Array<float> scales;  // empty unless F8_E4M3
  };

  template <class T>
  Array<T> array(std::string_view name) const {
    const TensorEntry& tensor = file_.at(name);
    Array<T> array{tensor.in_place<T>(), tensor.size(), {}};
    if (array.data == nullptr && array.size > 0) {
      array.copy = file_.read<T>(name);
      array.data = array.copy.data();
    }
    return array;
  }

  static std::string text(const TensorEntry& tensor) {
    return std::string(name_of(tensor.dtype)) + " " + to_string(tensor.shape);
  }

  Range part(const Array<std::int64_t>& offsets, const char* name, index_t i, index_t size) const {
    const Range range{offsets.data[i], offsets.data[i + 1]};
    if (range.begin < 0 || range.begin > range.end || range.end > size)
      throw Error(path().string() + ": sample " + std::to_string(first_sample_ + i) + ": " + name +
                  " say " + std::to_string(range.begin) + " to " + std::to_string(range.end) +
                  " of " + std::to_string(size));
    return range;
  }

  std::string name_of_sample(index_t i) const {
    return std::to_string(first_sample_ + i) + " (" + in_quotes(id_of(i)) + ")";
  }

  SafetensorsFile file_;
  DType dtype_;
  index_t first_sample_, rows_;
  std::vector<Matrix> matrices_;
  Array<std::int32_t> tokens_;
  Array<std::uint8_t> loss_mask_, id_bytes_;
  Array<std::int64_t> row_offsets_, id_offsets_;
  Array<std::uint64_t> sample_checksums_;
};

/// The rows of one sample in a mapped shard.
class StoreRows : public FeatureRows {
 public:
  StoreRows(std::shared_ptr<const StoreShard> shard, std::size_t matrix, index_t sample)
      : shard_(std::move(shard)), matrix_(matrix), sample_(sample) {}

  index_t rows() const override { return shard_->rows_of(sample_).size(); }
  index_t width() const override { return shard_->width(matrix_); }
  bool in_bfloat16() const override { return shard_->dtype() == DType::bf16; }
  void read(Range range, float* out) const override { read_as(range, out); }
  void read_rounded(Range range, bfloat16* out) const override { read_as(range, out); }

 private:
  template <class T>
  void read_as(Range range, T* out) const {
    expects(range.begin >= 0 && range.begin <= range.end && range.end <= rows(),
            "rows of a sample must be within it");
    shard_->read(matrix_, sample_, range, out);
  }

  std::shared_ptr<const StoreShard> shard_;
  std::size_t matrix_;
  index_t sample_;
};

}  // namespace dflash
