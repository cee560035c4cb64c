#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/io/atomic_file.hpp"
#include "dflash/io/dtype.hpp"
#include "dflash/io/tensor_entry.hpp"

namespace dflash {

static_assert(std::endian::native == std::endian::little, "the file format is little-endian");

/// A tensor to be written.
struct TensorData {
  std::string name;
  DType dtype;
  std::vector<index_t> shape;
  const void* data = nullptr;  // may be null where only the layout is asked for

  index_t bytes() const { return TensorEntry{dtype, shape, nullptr}.bytes(); }
};

/// Where everything lies in a safetensors file of these tensors: those with larger elements first,
/// else in the given order, so that each is aligned if the header is.
struct SafetensorsLayout {
  std::string header;            // with its length in front
  std::vector<index_t> offsets;  // of each tensor, in the given order, from the file's beginning
  index_t bytes = 0;             // of the whole file

  /// `header_multiple`: the data begins at a multiple of this many bytes.
  explicit SafetensorsLayout(std::span<const TensorData> tensors,
                             const std::map<std::string, std::string>& metadata = {},
                             index_t header_multiple = 8)
      : offsets(tensors.size()) {
    std::vector<std::size_t> order(tensors.size());
    std::iota(order.begin(), order.end(), std::size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return size_of(tensors[a].dtype) > size_of(tensors[b].dtype);
    });
    nlohmann::ordered_json json = nlohmann::ordered_json::object();
    if (!metadata.empty()) json["__metadata__"] = metadata;
    index_t end = 0;
    for (const std::size_t i : order) {
      const TensorData& tensor = tensors[i];
      expects(!json.contains(tensor.name), "two tensors of one file have the same name");
      offsets[i] = end;
      end += tensor.bytes();
      json[tensor.name] = {{"dtype", name_of(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offsets[i], end}}};
    }
    std::string text = json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    const std::size_t multiple(header_multiple);
    text.resize((8 + text.size() + multiple - 1) / multiple * multiple - 8, ' ');
    for (int i = 0; i < 8; ++i) header += char(std::uint64_t(text.size()) >> (8 * i) & 0xff);
    header += text;
    for (index_t& offset : offsets) offset += index_t(header.size());
    bytes = index_t(header.size()) + end;
  }
};

/// Writes a whole safetensors file at once: complete under its name, or not there. Error naming the
/// file if it cannot be written.
inline void write_safetensors(const std::filesystem::path& path,
                              std::span<const TensorData> tensors,
                              const std::map<std::string, std::string>& metadata = {},
                              index_t header_multiple = 8) {
  const SafetensorsLayout layout(tensors, metadata, header_multiple);
  AtomicFile file(path);
  file.reserve(layout.bytes);
  file.write(layout.header.data(), index_t(layout.header.size()));
  for (std::size_t i = 0; i < tensors.size(); ++i)
    file.write_at(layout.offsets[i], tensors[i].data, tensors[i].bytes());
  file.commit();
}

}  // namespace dflash
