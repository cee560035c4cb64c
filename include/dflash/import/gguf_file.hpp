#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/import/bytes.hpp"
#include "dflash/import/gguf_types.hpp"
#include "dflash/io/in_quotes.hpp"
#include "dflash/io/mapped_file.hpp"

namespace dflash {

/// A tensor in a GGUF file. Its shape is row-major: the file lists extents the other way round.
struct GgufTensor {
  const GgufType* type;
  std::vector<index_t> shape;
  const std::byte* data;

  index_t size() const {
    index_t n = 1;
    for (const index_t extent : shape) n *= extent;
    return n;
  }
  index_t bytes() const { return size() / type->values * type->bytes; }

  /// All values.                                                                    out (size)
  void read(float* out) const {
    const index_t blocks = size() / type->values;
    for (index_t b = 0; b < blocks; ++b)
      type->widen(data + b * type->bytes, out + b * type->values);
  }
};

/// A GGUF file (ggml's model format, versions 2 and 3), mapped into memory. The file may be
/// hostile: every size and place is checked, and what disagrees is an Error that names the file.
class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& path)
      : mapped_(path), file_(path.string(), {mapped_.data(), std::size_t(mapped_.size())}) {
    if (file_.size() < 4 || file_.text(0, 4, "its first bytes") != "GGUF")
      file_.fail("it is no GGUF file");
    at_ = 4;
    version_ = take<std::uint32_t>();
    if (version_ != 2 && version_ != 3)
      file_.fail("its version is " + std::to_string(version_) + " where 2 or 3 is expected");
    const auto tensors = take<std::uint64_t>(), entries = take<std::uint64_t>();
    for (std::uint64_t i = 0; i < entries; ++i) {
      std::string key = text();
      const auto type = take<std::uint32_t>();
      if (metadata_.contains(key)) file_.fail("it has the key " + in_quotes(key) + " twice");
      metadata_.emplace(std::move(key), value(type));
    }
    read_tensors(tensors);
  }

  const std::filesystem::path& path() const { return mapped_.path(); }
  std::uint32_t version() const { return version_; }
  /// Keys and their values; lists are arrays.
  const std::map<std::string, nlohmann::json, std::less<>>& metadata() const { return metadata_; }
  const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }
  /// Bytes before the tensors' data.
  index_t data_offset() const { return index_t(data_offset_); }
  /// Where a tensor lies in the file.
  index_t offset_of(const GgufTensor& tensor) const { return tensor.data - mapped_.data(); }

 private:
  static constexpr const char* header_text = "its header";

  template <class T>
  T take() {
    const T value = file_.number<T>(at_, header_text);
    at_ += sizeof(T);
    return value;
  }
  std::string text() {
    const auto size = take<std::uint64_t>();
    std::string value = file_.text(at_, size, header_text);
    at_ += size;
    return value;
  }

  nlohmann::json value(std::uint32_t type) {
    switch (type) {
      case 0:
        return take<std::uint8_t>();
      case 1:
        return take<std::int8_t>();
      case 2:
        return take<std::uint16_t>();
      case 3:
        return take<std::int16_t>();
      case 4:
        return take<std::uint32_t>();
      case 5:
        return take<std::int32_t>();
      case 6:
        return take<float>();
      case 7:
        return take<std::uint8_t>() != 0;
      case 8:
        return text();
      case 9:
        return list();
      case 10:
        return take<std::uint64_t>();
      case 11:
        return take<std::int64_t>();
      case 12:
        return take<double>();
      default:
        file_.fail("its header has a value of the unknown type " + std::to_string(type));
    }
  }
  nlohmann::json list() {
    const auto type = take<std::uint32_t>();
    if (type == 9) file_.fail("its header has a list of lists");
    nlohmann::json values = nlohmann::json::array();
    const auto count = take<std::uint64_t>();
    for (std::uint64_t i = 0; i < count; ++i) values.push_back(value(type));
    return values;
  }

  void read_tensors(std::uint64_t count) {
    struct Place {
      std::string name;
      std::uint64_t offset;
    };
    std::vector<Place> places;
    for (std::uint64_t i = 0; i < count; ++i) {
      std::string name = text();
      GgufTensor tensor{nullptr, {}, nullptr};
      const auto dimensions = take<std::uint32_t>();
      if (dimensions > 8) file_.fail("tensor " + in_quotes(name) + " has too many dimensions");
      index_t size = 1;
      for (std::uint32_t d = 0; d < dimensions; ++d) {
        const auto extent = take<std::uint64_t>();
        if (extent == 0 || extent > std::uint64_t(std::numeric_limits<index_t>::max()) ||
            __builtin_mul_overflow(size, index_t(extent), &size))
          file_.fail("tensor " + in_quotes(name) + " has a shape that overflows");
        tensor.shape.insert(tensor.shape.begin(), index_t(extent));
      }
      const auto type = take<std::uint32_t>();
      tensor.type = gguf_type(type);
      if (tensor.type == nullptr)
        file_.fail("tensor " + in_quotes(name) + " has the unknown type " + std::to_string(type));
      if ((tensor.shape.empty() ? 1 : tensor.shape.back()) % tensor.type->values != 0)
        file_.fail("tensor " + in_quotes(name) + " has rows that are not whole blocks of " +
                   std::string(tensor.type->name));
      places.push_back({name, take<std::uint64_t>()});
      if (!tensors_.emplace(std::move(name), std::move(tensor)).second)
        file_.fail("it has a tensor twice");
    }
    const std::uint64_t alignment = this->alignment();
    data_offset_ = (at_ + alignment - 1) / alignment * alignment;
    for (const Place& place : places) {
      GgufTensor& tensor = tensors_.find(place.name)->second;
      const index_t blocks = tensor.size() / tensor.type->values,
                    room = file_.size() / tensor.type->bytes;
      const std::uint64_t begin = data_offset_ + place.offset, end = std::uint64_t(file_.size());
      if (begin < place.offset || begin > end || blocks > room ||
          std::uint64_t(tensor.bytes()) > end - begin)
        file_.fail("tensor " + in_quotes(place.name) + " does not lie in the file");
      tensor.data = mapped_.data() + begin;
    }
  }

  std::uint64_t alignment() const {
    const auto found = metadata_.find("general.alignment");
    if (found == metadata_.end()) return 32;
    const nlohmann::json& value = found->second;
    if (!value.is_number_unsigned() || value < 1 || value > 1 << 20)
      file_.fail("its general.alignment is no alignment");
    return value.get<std::uint64_t>();
  }

  MappedFile mapped_;
  FileBytes file_;
  std::uint64_t at_ = 0, data_offset_ = 0;
  std::uint32_t version_ = 0;
  std::map<std::string, nlohmann::json, std::less<>> metadata_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

}  // namespace dflash
