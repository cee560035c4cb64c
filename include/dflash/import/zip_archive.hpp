#pragma once

#include <zlib.h>

#include <algorithm>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "dflash/import/bytes.hpp"
#include "dflash/io/in_quotes.hpp"

namespace dflash {

/// A zip archive (APPNOTE 6.3, with its 64-bit fields) whose members are stored as they are, as
/// torch.save writes them.
class ZipArchive {
 public:
  explicit ZipArchive(FileBytes file) : file_(std::move(file)) {
    Directory directory = find_directory();
    for (std::uint64_t i = 0; i < directory.members; ++i) directory.at = read_member(directory.at);
  }

  const FileBytes& file() const { return file_; }
  bool contains(std::string_view name) const { return members_.find(name) != members_.end(); }

  /// The name of the one member that ends with `end`.
  const std::string& name_ending(std::string_view end) const {
    const std::string* found = nullptr;
    for (const auto& [name, member] : members_)
      if (name.ends_with(end)) {
        if (found != nullptr) file_.fail("it has two members " + in_quotes(end));
        found = &name;
      }
    if (found == nullptr) file_.fail("it has no member " + in_quotes(end));
    return *found;
  }

  /// The bytes of a member. Error if their checksum is wrong.
  std::span<const std::byte> at(std::string_view name) const {
    const auto found = members_.find(name);
    if (found == members_.end()) file_.fail("it has no member " + in_quotes(name));
    const Member& member = found->second;
    const auto bytes = file_.range(member.begin, member.size, "one of its members");
    uLong sum = ::crc32(0, nullptr, 0);
    constexpr std::size_t most = std::numeric_limits<uInt>::max();
    for (std::size_t i = 0; i < bytes.size(); i += most)
      sum = ::crc32(sum, reinterpret_cast<const Bytef*>(bytes.data() + i),
                    uInt(std::min(most, bytes.size() - i)));
    if (sum != member.checksum)
      file_.fail("member " + in_quotes(name) + " is damaged: its checksum is wrong");
    return bytes;
  }

 private:
  struct Directory {
    std::uint64_t at, members;
  };
  struct Member {
    std::uint64_t begin, size;
    std::uint32_t checksum;
  };
  static constexpr const char* directory_text = "its directory";

  template <class T>
  T number(std::uint64_t at) const {
    return file_.number<T>(at, directory_text);
  }

  /// The record at the end, behind which there may be a comment.
  Directory find_directory() const {
    constexpr index_t record = 22, longest_comment = 65535;
    for (index_t at = file_.size() - record;
         at >= 0 && at >= file_.size() - record - longest_comment; --at) {
      const auto end = std::uint64_t(at);
      if (number<std::uint32_t>(end) != 0x06054b50) continue;
      const auto members = number<std::uint16_t>(end + 10);
      const auto begin = number<std::uint32_t>(end + 16);
      if (members != 0xffff && begin != 0xffffffff) return {begin, members};
      if (at < 20 || number<std::uint32_t>(end - 20) != 0x07064b50)
        file_.fail("it lacks the 64-bit record of its directory");
      const auto wide = number<std::uint64_t>(end - 20 + 8);
      if (number<std::uint32_t>(wide) != 0x06064b50)
        file_.fail("the 64-bit record of its directory is damaged");
      return {number<std::uint64_t>(wide + 48), number<std::uint64_t>(wide + 32)};
    }
    file_.fail("it is no zip archive, or its end is missing");
  }

  /// Reads the entry of a member; returns where the next one begins.
  std::uint64_t read_member(std::uint64_t at) {
    if (number<std::uint32_t>(at) != 0x02014b50) file_.fail("its directory is damaged");
    const auto method = number<std::uint16_t>(at + 10);
    const auto name_size = number<std::uint16_t>(at + 28), extra = number<std::uint16_t>(at + 30),
               comment = number<std::uint16_t>(at + 32);
    std::string name = file_.text(at + 46, name_size, directory_text);
    std::uint64_t packed = number<std::uint32_t>(at + 20), size = number<std::uint32_t>(at + 24),
                  header = number<std::uint32_t>(at + 42);
    widen(at + 46 + name_size, extra, {&size, &packed, &header});
    if (method != 0 || packed != size)
      file_.fail("member " + in_quotes(name) + " is compressed, which torch.save does not do");
    if (number<std::uint32_t>(header) != 0x04034b50)
      file_.fail("member " + in_quotes(name) + " is not where the directory says");
    const Member member{
        header + 30 + number<std::uint16_t>(header + 26) + number<std::uint16_t>(header + 28), size,
        number<std::uint32_t>(at + 16)};
    if (!members_.emplace(std::move(name), member).second)
      file_.fail("its directory names a member twice");
    return at + 46 + name_size + extra + comment;
  }

  /// Numbers that do not fit into 32 bits stand in a field of 64-bit ones, in this order.
  void widen(std::uint64_t at, std::uint64_t extra,
             std::initializer_list<std::uint64_t*> numbers) const {
    const std::uint64_t end = at + extra;
    for (std::uint64_t field = at; field + 4 <= end;) {
      const std::uint64_t size = number<std::uint16_t>(field + 2);
      if (number<std::uint16_t>(field) == 1) {
        std::uint64_t next = field + 4;
        for (std::uint64_t* n : numbers)
          if (*n == 0xffffffff && next + 8 <= field + 4 + size) {
            *n = number<std::uint64_t>(next);
            next += 8;
          }
      }
      field += 4 + size;
    }
  }

  FileBytes file_;
  std::map<std::string, Member, std::less<>> members_;
};

}  // namespace dflash
