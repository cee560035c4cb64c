#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/data/row_codec.hpp"
#include "dflash/data/shard_plan.hpp"
#include "dflash/io/atomic_file.hpp"

namespace dflash {

/// The shard that a writer is filling. Rows go to disk as they come; what is small is kept until
/// the end. Without `commit` nothing is left behind.
class OpenShard {
 public:
  OpenShard(const std::filesystem::path& path, const StoreDescription& description,
            const ShardPlan::Shard& plan, const std::map<std::string, std::string>& metadata)
      : dtype_(description.dtype),
        matrices_(row_matrices(description)),
        tensors_(shard_tensors(description, plan.samples.size(), plan.rows, plan.id_bytes)),
        layout_(tensors_, metadata, shard_alignment),
        file_(path),
        scales_(matrices_.size()),
        checksums_(matrices_.size()) {
    file_.reserve(layout_.bytes);
    file_.write(layout_.header.data(), index_t(layout_.header.size()));
  }

  /// Rows that the samples begun so far still lack.
  index_t missing_rows() const { return row_offsets_.back() - row_; }

  void begin(const TokenizedSample& sample) {
    tokens_.insert(tokens_.end(), sample.tokens.begin(), sample.tokens.end());
    loss_mask_.insert(loss_mask_.end(), sample.loss_mask.begin(), sample.loss_mask.end());
    id_bytes_ += sample.id;
    row_offsets_.push_back(std::int64_t(tokens_.size()));
    id_offsets_.push_back(std::int64_t(id_bytes_.size()));
    sample_checksums_.push_back(sample_checksum(sample));
  }

  /// Next rows of the sample.                           features (n, C * H)  last_hidden (n, H)
  template <class T>
  void append(View<const T, 2> features, View<const T, 2> last_hidden) {
    expects(features.shape[0] <= missing_rows(), "a sample has no more rows than tokens");
    write_rows(0, features);
    if (matrices_.size() > 1) {
      expects(last_hidden.shape[0] == features.shape[0],
              "an EAGLE3 store needs the last hidden state of every row");
      write_rows(1, last_hidden);
    }
    row_ += features.shape[0];
  }

  void commit() {
    for (std::size_t m = 0; m < matrices_.size(); ++m) {
      if (dtype_ == DType::f8_e4m3) write(matrices_[m].scale, scales_[m]);
      write(matrices_[m].checksums, checksums_[m]);
    }
    write("tokens", tokens_);
    write("loss_mask", loss_mask_);
    write("row_offsets", row_offsets_);
    write("id_offsets", id_offsets_);
    write("id_bytes", id_bytes_);
    write("sample_checksums", sample_checksums_);
    file_.commit();
  }

 private:
  template <class T>
  void write_rows(std::size_t m, View<const T, 2> rows) {
    const index_t width = matrices_[m].width, bytes = width * size_of(dtype_);
    expects(rows.shape[1] == width, "rows must be as wide as the store's");
    const index_t piece = std::max<index_t>(1, (1 << 20) / bytes);
    for (index_t first = 0; first < rows.shape[0]; first += piece) {
      const index_t count = std::min(piece, rows.shape[0] - first);
      buffer_.resize(std::size_t(count * bytes));
      for (index_t i = 0; i < count; ++i) {
        std::byte* out = buffer_.data() + i * bytes;
        scales_[m].push_back(encode_row(&rows.data[(first + i) * width], width, dtype_, out));
        checksums_[m].push_back(row_checksum(out, bytes, scales_[m].back()));
      }
      file_.write_at(offset_of(matrices_[m].name) + (row_ + first) * bytes, buffer_.data(),
                     count * bytes);
    }
  }

  template <class Values>
  void write(const char* name, const Values& values) {
    file_.write_at(offset_of(name), values.data(),
                   index_t(values.size() * sizeof(typename Values::value_type)));
  }

  index_t offset_of(const std::string& name) const {
    const auto found = std::find_if(tensors_.begin(), tensors_.end(),
                                    [&](const TensorData& t) { return t.name == name; });
    return layout_.offsets[std::size_t(found - tensors_.begin())];
  }

  DType dtype_;
  std::vector<RowMatrix> matrices_;
  std::vector<TensorData> tensors_;
  SafetensorsLayout layout_;
  AtomicFile file_;
  index_t row_ = 0;  // rows written
  std::vector<std::int64_t> row_offsets_{0}, id_offsets_{0};
  std::vector<std::int32_t> tokens_;
  std::vector<std::uint8_t> loss_mask_;
  std::string id_bytes_;
  std::vector<std::uint64_t> sample_checksums_;
  std::vector<std::vector<float>> scales_;             // by matrix, row
  std::vector<std::vector<std::uint64_t>> checksums_;  // by matrix, row
  std::vector<std::byte> buffer_;
};

}  // namespace dflash
