#pragma once

#include <filesystem>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dflash/import/gzip.hpp"
#include "dflash/import/pickle.hpp"
#include "dflash/import/zip_archive.hpp"
#include "dflash/io/mapped_file.hpp"
#include "dflash/io/tensor_entry.hpp"

namespace dflash {

/// The tensors of a dictionary that torch.save wrote, from the file itself or from its gzip. The
/// file may be hostile: its pickle is read as a description, sizes are checked, and what cannot be
/// is an Error of one sentence that names the file and the key.
class TorchArchive {
 public:
  using Tensors = std::map<std::string, TensorEntry, std::less<>>;

  explicit TorchArchive(const std::filesystem::path& path) : mapped_(path) {
    FileBytes file(path.string(), {mapped_.data(), std::size_t(mapped_.size())});
    if (is_gzip(file)) {
      unzipped_ = gunzip(file);
      file = FileBytes(path.string(), unzipped_);
    }
    const ZipArchive archive(std::move(file));
    constexpr std::string_view root = "data.pkl";
    const std::string& pickle = archive.name_ending("/data.pkl");
    folder_ = pickle.substr(0, pickle.size() - root.size());
    check_byte_order(archive);
    read(archive, Pickle(FileBytes(path.string(), archive.at(pickle))).root());
  }

  const std::filesystem::path& path() const { return mapped_.path(); }
  const Tensors& tensors() const { return tensors_; }
  /// Keys whose value is None.
  const std::set<std::string, std::less<>>& nulls() const { return nulls_; }
  bool contains(std::string_view key) const { return tensors_.find(key) != tensors_.end(); }
  const TensorEntry& at(std::string_view key) const {
    const auto found = tensors_.find(key);
    if (found == tensors_.end()) throw Error(path().string() + ": it has no " + in_quotes(key));
    return found->second;
  }

 private:
  using Kind = PickleNode::Kind;

  [[noreturn]] void fail(const std::string& why) const {
    throw Error(path().string() + ": " + why);
  }

  void check_byte_order(const ZipArchive& archive) const {
    const std::string name = folder_ + "byteorder";
    if (!archive.contains(name)) return;  // older files, all little-endian
    const auto bytes = archive.at(name);
    if (std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()) != "little")
      fail("its numbers are not little-endian");
  }

  void read(const ZipArchive& archive, const PickleNode& root) {
    if (root.kind != Kind::dict) fail("what it holds is not a dictionary");
    for (std::size_t i = 0; i < root.items.size(); i += 2) {
      const PickleNode &key = *root.items[i], &value = *root.items[i + 1];
      if (key.kind != Kind::text) fail("a key of its dictionary is not a text");
      if (value.kind == Kind::none)
        nulls_.insert(key.text);
      else if (value.kind == Kind::call)
        tensors_.insert_or_assign(key.text, tensor(archive, key.text, value));
    }
  }

  /// _rebuild_tensor_v2(storage, offset, shape, strides, ...), all counted in elements.
  TensorEntry tensor(const ZipArchive& archive, const std::string& key, const PickleNode& call) {
    const auto must = [&](bool ok, const char* what) {
      if (!ok) fail("key " + in_quotes(key) + ": " + what);
    };
    const PickleNode &called = *call.items[0], &arguments = *call.items[1];
    must(called.kind == Kind::global && called.text == "torch._utils _rebuild_tensor_v2" &&
             arguments.kind == Kind::tuple && arguments.items.size() >= 4,
         "it is not a tensor");
    const auto [dtype, storage] = this->storage(archive, key, *arguments.items[0]);
    const PickleNode& first = *arguments.items[1];
    must(first.kind == Kind::integer, "its tensor begins nowhere");
    const auto shape = numbers(*arguments.items[2]), strides = numbers(*arguments.items[3]);
    must(shape && strides && shape->size() == strides->size(), "its tensor has no shape");

    const index_t room = index_t(storage.size()) / size_of(dtype);
    index_t count = 1, contiguous = 1, last = first.integer;
    bool in_order = true;
    for (std::size_t d = shape->size(); d-- > 0;) {
      const index_t n = (*shape)[d], stride = (*strides)[d];
      index_t reach = 0;
      must(n >= 0 && stride >= 0 && !__builtin_mul_overflow(count, n, &count) && count <= room &&
               !__builtin_mul_overflow(stride, std::max<index_t>(n - 1, 0), &reach) &&
               !__builtin_add_overflow(last, reach, &last),
           "its tensor is larger than what is stored");
      in_order = in_order && (n <= 1 || stride == contiguous);
      contiguous *= std::max<index_t>(n, 1);
    }
    must(first.integer >= 0 && (count == 0 || last < room),
         "its tensor is larger than what is stored");
    TensorEntry entry{dtype, *shape, storage.data()};
    if (count > 0) entry.data += first.integer * size_of(dtype);
    if (!in_order && count > 0) entry.data = gathered(entry, *strides);
    return entry;
  }

  /// ("storage", its type, its member, device, number of elements).
  std::pair<DType, std::span<const std::byte>> storage(const ZipArchive& archive,
                                                       const std::string& key,
                                                       const PickleNode& node) const {
    const PickleNode* const id = node.kind == Kind::persistent ? node.items[0] : nullptr;
    if (id == nullptr || id->kind != Kind::tuple || id->items.size() < 5 ||
        id->items[1]->kind != Kind::global || id->items[2]->kind != Kind::text)
      fail("key " + in_quotes(key) + ": its tensor has no storage");
    static const std::map<std::string_view, DType> types = {
        {"torch BoolStorage", DType::boolean}, {"torch ByteStorage", DType::u8},
        {"torch CharStorage", DType::i8},      {"torch ShortStorage", DType::i16},
        {"torch IntStorage", DType::i32},      {"torch LongStorage", DType::i64},
        {"torch HalfStorage", DType::f16},     {"torch BFloat16Storage", DType::bf16},
        {"torch FloatStorage", DType::f32},    {"torch DoubleStorage", DType::f64}};
    const auto type = types.find(id->items[1]->text);
    if (type == types.end())
      fail("key " + in_quotes(key) + ": its tensor has the unknown type " +
           in_quotes(id->items[1]->text));
    return {type->second, archive.at(folder_ + "data/" + id->items[2]->text)};
  }

  static std::optional<std::vector<index_t>> numbers(const PickleNode& node) {
    if (node.kind != Kind::tuple) return std::nullopt;
    std::vector<index_t> values;
    for (const PickleNode* item : node.items) {
      if (item->kind != Kind::integer) return std::nullopt;
      values.push_back(index_t(item->integer));
    }
    return values;
  }

  /// A copy of a tensor in row-major order.
  const std::byte* gathered(const TensorEntry& tensor, const std::vector<index_t>& strides) {
    const index_t each = size_of(tensor.dtype), count = tensor.size();
    std::vector<std::byte>& copy = copies_.emplace_back(std::size_t(count * each));
    for (index_t i = 0; i < count; ++i) {
      index_t rest = i, at = 0;
      for (std::size_t d = tensor.shape.size(); d-- > 0; rest /= tensor.shape[d])
        at += rest % tensor.shape[d] * strides[d];
      std::memcpy(copy.data() + i * each, tensor.data + at * each, std::size_t(each));
    }
    return copy.data();
  }

  MappedFile mapped_;
  std::vector<std::byte> unzipped_;
  std::string folder_;  // of the archive's members, with its slash
  Tensors tensors_;
  std::set<std::string, std::less<>> nulls_;
  std::list<std::vector<std::byte>> copies_;
};

}  // namespace dflash
