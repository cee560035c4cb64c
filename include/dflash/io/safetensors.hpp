#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/io/in_quotes.hpp"
#include "dflash/io/mapped_file.hpp"
#include "dflash/io/tensor_entry.hpp"

namespace dflash {

/// Copies a tensor that must have the given shape, or what `part` says of it, converted to T. Error
/// naming the file, the tensor and what differs.
template <class T, class... Part>
void read_tensor(const std::filesystem::path& path, std::string_view name,
                 const TensorEntry& tensor, const std::vector<index_t>& shape, T* out,
                 const Part&... part) {
  if (tensor.shape != shape)
    throw Error(path.string() + ": tensor " + in_quotes(name) + " has shape " +
                to_string(tensor.shape) + " where " + to_string(shape) + " is expected");
  try {
    convert(tensor, part..., out);
  } catch (const Error& error) {
    throw Error(path.string() + ": tensor " + in_quotes(name) + ": " + error.what());
  }
}

/// A safetensors file (huggingface.co/docs/safetensors), mapped into memory. The file may be
/// hostile: every size and offset is checked before use, and what disagrees is an Error of one
/// sentence that names the file and the tensor.
class SafetensorsFile {
 public:
  using Tensors = std::map<std::string, TensorEntry, std::less<>>;
  using Metadata = std::map<std::string, std::string>;

  /// Headers that are longer are refused, as the format's reference implementation does.
  static constexpr index_t largest_header = 100'000'000;

  explicit SafetensorsFile(const std::filesystem::path& path) : file_(path) { read_header(); }

  const std::filesystem::path& path() const { return file_.path(); }
  const Tensors& tensors() const { return tensors_; }
  const Metadata& metadata() const { return metadata_; }
  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  const TensorEntry& at(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail("it has no tensor " + in_quotes(name));
    return found->second;
  }

  /// All elements of a tensor, converted to T.
  template <class T>
  std::vector<T> read(std::string_view name) const {
    const TensorEntry& tensor = at(name);
    std::vector<T> out(std::size_t(tensor.size()));
    read(name, tensor.shape, out.data());
    return out;
  }

  /// The same into memory of the caller, for a tensor that must have this shape.
  template <class T>
  void read(std::string_view name, const std::vector<index_t>& shape, T* out) const {
    read_tensor(path(), name, at(name), shape, out);
  }
  /// A part of such a tensor; the pages of the rest are not read.
  template <class T>
  void read(std::string_view name, const std::vector<index_t>& shape, const TensorPart& part,
            T* out) const {
    read_tensor(path(), name, at(name), shape, out, part);
  }

 private:
  using Json = nlohmann::json;
  using Extent = std::pair<index_t, index_t>;  // bytes [begin, end) of the data section

  [[noreturn]] void fail(const std::string& why) const {
    throw Error(path().string() + ": " + why);
  }
  [[noreturn]] void fail(const std::string& name, const std::string& why) const {
    fail("tensor " + in_quotes(name) + " " + why);
  }

  void read_header() {
    if (file_.size() < 8)
      fail("it has " + std::to_string(file_.size()) +
           " bytes, too few for the header of a safetensors file");
    std::uint64_t length = 0;
    for (int i = 0; i < 8; ++i) length |= std::uint64_t(file_.data()[i]) << (8 * i);
    if (length > std::uint64_t(largest_header) || index_t(length) > file_.size() - 8)
      fail("its header claims " + std::to_string(length) + " bytes where the file has " +
           std::to_string(file_.size()));
    const char* text = reinterpret_cast<const char*>(file_.data()) + 8;
    const Json header = parse_header(std::string_view(text, length));
    const std::byte* data = file_.data() + 8 + length;
    const index_t data_size = file_.size() - 8 - index_t(length);
    std::vector<std::pair<Extent, const std::string*>> extents;
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") {
        read_metadata(entry);
        continue;
      }
      const Extent extent = read_entry(name, entry, data, data_size);
      extents.emplace_back(extent, &tensors_.find(name)->first);
    }
    std::sort(extents.begin(), extents.end());
    index_t expected = 0;
    for (const auto& [extent, name] : extents) {
      if (extent.first != expected)
        fail(*name, "begins at byte " + std::to_string(extent.first) + " of the data where byte " +
                        std::to_string(expected) + " is expected: " +
                        (extent.first < expected ? "tensors overlap" : "there is a hole"));
      expected = extent.second;
    }
    if (expected != data_size)
      fail("its tensors end at byte " + std::to_string(expected) + " of the data, which has " +
           std::to_string(data_size));
  }

  Json parse_header(std::string_view text) const {
    if (text.empty() || text.front() != '{') fail("its header does not begin with {");
    std::vector<std::set<std::string>> keys;  // of the objects around the current place
    const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
      if (depth > 3) fail("its header nests too deeply");
      if (event == Json::parse_event_t::object_start) keys.emplace_back();
      if (event == Json::parse_event_t::object_end) keys.pop_back();
      if (event == Json::parse_event_t::key) {
        const auto& key = value.get_ref<const std::string&>();
        if (!keys.back().insert(key).second)
          fail("its header has the key " + in_quotes(key) + " twice");
      }
      return true;
    };
    try {
      return Json::parse(text, watch);
    } catch (const Json::parse_error& error) {
      fail("its header is not valid JSON at byte " + std::to_string(error.byte));
    } catch (const Json::exception&) {
      fail("its header is not valid JSON");
    }
  }

  void read_metadata(const Json& entry) {
    if (!entry.is_object()) fail("its __metadata__ is not an object");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string())
        fail("the value of " + in_quotes(key) + " in its __metadata__ is not a string");
      metadata_[key] = value.get<std::string>();
    }
  }

  Extent read_entry(const std::string& name, const Json& entry, const std::byte* data,
                    index_t data_size) {
    for (const char* field : {"dtype", "shape", "data_offsets"})
      if (!entry.is_object() || !entry.contains(field)) fail(name, std::string("has no ") + field);
    TensorEntry tensor;
    const Json &dtype = entry["dtype"], &shape = entry["shape"], &offsets = entry["data_offsets"];
    const auto known =
        dtype.is_string() ? dtype_named(dtype.get_ref<const std::string&>()) : std::nullopt;
    if (!known)
      fail(name, "has the unknown dtype " + (dtype.is_string() ? in_quotes(dtype.get<std::string>())
                                                               : in_quotes(dtype.type_name())));
    tensor.dtype = *known;
    if (!shape.is_array()) fail(name, "has a shape that is not a list");
    // A zero among the extents must not hide an overflow of the others.
    index_t bytes = size_of(tensor.dtype), nonzero = bytes;
    for (const Json& extent : shape) {
      const index_t n = whole_number(extent);
      if (n < 0) fail(name, "has a shape with an entry that is not a size");
      if (__builtin_mul_overflow(nonzero, std::max<index_t>(n, 1), &nonzero))
        fail(name, "has a shape that overflows");
      bytes *= n;
      tensor.shape.push_back(n);
    }
    if (!offsets.is_array() || offsets.size() != 2 || whole_number(offsets[0]) < 0 ||
        whole_number(offsets[1]) < 0)
      fail(name, "has data_offsets that are not two sizes");
    const Extent extent{whole_number(offsets[0]), whole_number(offsets[1])};
    if (extent.first > extent.second || extent.second > data_size)
      fail(name, "lies at bytes " + std::to_string(extent.first) + " to " +
                     std::to_string(extent.second) + " of the data, which has " +
                     std::to_string(data_size));
    if (extent.second - extent.first != bytes)
      fail(name, "takes " + std::to_string(extent.second - extent.first) + " bytes where " +
                     std::string(name_of(tensor.dtype)) + " " + to_string(tensor.shape) +
                     " needs " + std::to_string(bytes));
    tensor.data = data + extent.first;
    tensors_.emplace(name, std::move(tensor));
    return extent;
  }

  /// -1 for what is not a whole number from 0 to the largest index.
  static index_t whole_number(const Json& json) {
    if (!json.is_number_unsigned()) return -1;
    const auto value = json.get<std::uint64_t>();
    return value > std::uint64_t(PTRDIFF_MAX) ? -1 : index_t(value);
  }

  MappedFile file_;
  Tensors tensors_;
  Metadata metadata_;
};

}  // namespace dflash
