#pragma once

#include <bit>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/data/sample.hpp"
#include "dflash/data/store_description.hpp"
#include "dflash/io/fingerprint.hpp"
#include "dflash/io/safetensors_writer.hpp"

namespace dflash {

/// Multiple of bytes at which a shard's data begins.
inline constexpr index_t shard_alignment = 4096;

/// "shard-000012.safetensors"
inline std::string shard_name(index_t shard) {
  char name[48];
  std::snprintf(name, sizeof name, "shard-%06lld.safetensors", static_cast<long long>(shard));
  return name;
}

/// One of a shard's matrices with a row for every token, and its companions.
struct RowMatrix {
  const char* name;
  const char* scale;      // (rows) F32, only with F8_E4M3: a row is its stored values times this
  const char* checksums;  // (rows) U64
  index_t width;
};

/// The features and, in EAGLE3 stores, the last hidden states.
inline std::vector<RowMatrix> row_matrices(const StoreDescription& d) {
  std::vector<RowMatrix> matrices{{"features", "scale", "checksums", d.width()}};
  if (d.has_last_hidden())
    matrices.push_back(
        {"last_hidden", "last_hidden_scale", "last_hidden_checksums", d.hidden_size});
  return matrices;
}

/// The tensors of a shard, without their data: samples laid end to end.
inline std::vector<TensorData> shard_tensors(const StoreDescription& d, index_t samples,
                                             index_t rows, index_t id_bytes) {
  std::vector<TensorData> tensors;
  for (const RowMatrix& matrix : row_matrices(d)) {
    tensors.push_back({matrix.name, d.dtype, {rows, matrix.width}});
    if (d.dtype == DType::f8_e4m3) tensors.push_back({matrix.scale, DType::f32, {rows}});
    tensors.push_back({matrix.checksums, DType::u64, {rows}});
  }
  tensors.push_back({"tokens", DType::i32, {rows}});
  tensors.push_back({"loss_mask", DType::u8, {rows}});
  tensors.push_back({"row_offsets", DType::i64, {samples + 1}});  // first row of each sample, end
  tensors.push_back({"id_offsets", DType::i64, {samples + 1}});   // likewise in id_bytes
  tensors.push_back({"id_bytes", DType::u8, {id_bytes}});
  tensors.push_back({"sample_checksums", DType::u64, {samples}});
  return tensors;
}

/// What a shard's header says of where it belongs: the store, but for its target's name, and the
/// place in it. A shard of another store or place is no shard of this one.
inline std::map<std::string, std::string> shard_metadata(const StoreDescription& d, index_t shard) {
  StoreDescription unnamed = d;
  unnamed.target_name.clear();
  return {{"store", Fingerprint().add(text_of(to_json(unnamed))).text()},
          {"shard", std::to_string(shard)}};
}

/// Bytes of a shard's tensors, without the header.
inline index_t shard_data_bytes(const StoreDescription& d, index_t samples, index_t rows,
                                index_t id_bytes) {
  index_t bytes = 0;
  for (const TensorData& tensor : shard_tensors(d, samples, rows, id_bytes))
    bytes += tensor.bytes();
  return bytes;
}

/// XXH3-64 of a row as it is stored; an F8_E4M3 row's scale is the seed.
inline std::uint64_t row_checksum(const void* row, index_t bytes, float scale = 0) {
  return xxh3(row, bytes, std::bit_cast<std::uint32_t>(scale));
}

/// XXH3-64 of a sample's mask, seeded with that of its tokens, seeded with that of its id.
inline std::uint64_t sample_checksum(std::string_view id, View<const std::int32_t, 1> tokens,
                                     View<const std::uint8_t, 1> loss_mask) {
  const std::uint64_t seed = xxh3(id.data(), index_t(id.size()));
  return xxh3(loss_mask.data, loss_mask.size(), xxh3(tokens.data, tokens.size() * 4, seed));
}

inline std::uint64_t sample_checksum(const TokenizedSample& sample) {
  return sample_checksum(sample.id, {sample.tokens.data(), {index_t(sample.tokens.size())}},
                         {sample.loss_mask.data(), {index_t(sample.loss_mask.size())}});
}

}  // namespace dflash
