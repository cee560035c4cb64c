#include "dflash/import/torch_archive.hpp"

#include <doctest/doctest.h>
#include <zlib.h>

#include <random>

#include "dflash/import/specforge_folder.hpp"
#include "import/bytes_of.hpp"
#include "io/temporary_folder.hpp"

namespace torch_archive_test {

using namespace dflash;

const auto golden_folder = std::filesystem::path(DFLASH_TEST_DATA) / "golden";

/// A member of a zip archive.
struct Member {
  std::string name, content;
};

/// An archive of stored members; `wide` moves sizes and places into 64-bit fields.
std::string zip_of(const std::vector<Member>& members, bool wide = false) {
  using u16 = std::uint16_t;
  using u32 = std::uint32_t;
  std::string file, directory;
  const u32 elsewhere = 0xffffffff;
  for (const auto& [name, content] : members) {
    const auto at = std::uint64_t(file.size()), size = std::uint64_t(content.size());
    const u32 sum =
        u32(::crc32(0, reinterpret_cast<const Bytef*>(content.data()), uInt(content.size())));
    const std::string sizes = bytes_of(u32(size)) + bytes_of(u32(size)),
                      lengths = bytes_of(u16(name.size())),
                      fields = bytes_of(u16(1)) + bytes_of(u16(24)) + bytes_of(size) +
                               bytes_of(size) + bytes_of(at);
    file += bytes_of(u32(0x04034b50)) + std::string(10, '\0') + bytes_of(sum) + sizes + lengths +
            bytes_of(u16(0)) + name + content;
    directory += bytes_of(u32(0x02014b50)) + std::string(12, '\0') + bytes_of(sum) +
                 (wide ? bytes_of(elsewhere) + bytes_of(elsewhere) : sizes) + lengths +
                 bytes_of(u16(wide ? fields.size() : 0)) + std::string(10, '\0') +
                 bytes_of(wide ? elsewhere : u32(at)) + name + (wide ? fields : "");
  }
  const auto begin = std::uint64_t(file.size()), count = std::uint64_t(members.size());
  file += directory;
  if (wide) {
    const auto record = std::uint64_t(file.size());
    file += bytes_of(u32(0x06064b50)) + std::string(28, '\0') + bytes_of(count) +
            bytes_of(std::uint64_t(directory.size())) + bytes_of(begin);
    file += bytes_of(u32(0x07064b50)) + bytes_of(u32(0)) + bytes_of(record) + bytes_of(u32(1));
  }
  const u16 number = wide ? 0xffff : u16(count);
  return file + bytes_of(u32(0x06054b50)) + std::string(4, '\0') + bytes_of(number) +
         bytes_of(number) + bytes_of(u32(directory.size())) +
         bytes_of(wide ? elsewhere : u32(begin)) + bytes_of(u16(0));
}

std::string text(const std::string& s) { return "X" + bytes_of(std::uint32_t(s.size())) + s; }

/// {"x": a tensor of int16 with these numbers}, as torch.save pickles it.
std::string pickle_of(const std::string& offset, const std::string& shape,
                      const std::string& strides, const std::string& type = "ShortStorage") {
  return "\x80\x02}(" + text("x") + "ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") +
         "ctorch\n" + type + "\n" + text("0") + text("cpu") + "K\x06tQ" + offset + shape + strides +
         "\x89)tRu.";
}

std::string archive_of(const std::string& pickle, bool wide = false) {
  std::string numbers;
  for (std::int16_t i = 0; i < 6; ++i) numbers += bytes_of(i);
  return zip_of({{"a/data.pkl", pickle}, {"a/byteorder", "little"}, {"a/data/0", numbers}}, wide);
}

std::string complaint(const std::string& content) {
  const TemporaryFolder folder;
  const auto path = folder / "x.ckpt";
  put(path, content);
  const std::string text = error_of([&] { TorchArchive archive(path); });
  if (text.empty()) return "";
  CHECK(text.starts_with(path.string() + ": "));
  return text.substr(path.string().size() + 2);
}

std::vector<std::int16_t> numbers_in(const std::string& content) {
  const TemporaryFolder folder;
  put(folder / "x.ckpt", content);
  const TorchArchive archive(folder / "x.ckpt");
  std::vector<std::int16_t> values(std::size_t(archive.at("x").size()));
  convert(archive.at("x"), values.data());
  return values;
}

const std::string two_by_three = std::string("K\x02K\x03\x86"),
                  rows = std::string("K\x03K\x01\x86");

TEST_CASE("tensors are read where they lie, transposed ones gathered, from 64-bit archives too") {
  using Numbers = std::vector<std::int16_t>;
  const std::string zero("K\0", 2);
  CHECK(numbers_in(archive_of(pickle_of(zero, two_by_three, rows))) == Numbers{0, 1, 2, 3, 4, 5});
  CHECK(numbers_in(archive_of(pickle_of(zero, two_by_three, rows), true)) ==
        Numbers{0, 1, 2, 3, 4, 5});
  CHECK(numbers_in(archive_of(pickle_of(zero, "K\x03K\x02\x86", "K\x01K\x03\x86"))) ==
        Numbers{0, 3, 1, 4, 2, 5});
  CHECK(numbers_in(archive_of(pickle_of("K\x04", "K\x02\x85", "K\x01\x85"))) == Numbers{4, 5});
}

TEST_CASE("a tensor that its storage does not hold is refused") {
  const std::string zero("K\0", 2),
      too_large = "key \"x\": its tensor is larger than what is stored";
  CHECK(complaint(archive_of(pickle_of("K\x01", two_by_three, rows))) == too_large);
  CHECK(complaint(archive_of(pickle_of(zero, two_by_three, "K\x04K\x01\x86"))) == too_large);
  CHECK(complaint(archive_of(pickle_of("J\xff\xff\xff\xff", "K\x02\x85", "K\x01\x85"))) ==
        too_large);
  CHECK(complaint(archive_of(pickle_of(zero, "J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86",
                                       std::string("K\0K\0\x86", 5)))) == too_large);
  CHECK(complaint(archive_of(pickle_of(zero, two_by_three, "K\x01\x85"))) ==
        "key \"x\": its tensor has no shape");
  CHECK(complaint(archive_of(pickle_of(zero, two_by_three, rows, "OddStorage"))) ==
        "key \"x\": its tensor has the unknown type \"torch OddStorage\"");
}

TEST_CASE("a pickle that would run code, or is none, is refused") {
  const auto pickled = [](const std::string& pickle) {
    return complaint(zip_of({{"a/data.pkl", pickle}}));
  };
  CHECK(pickled("\x80\x02}" + text("x") + "cos\nsystem\n" + text("true") + "\x85Rs.") ==
        "key \"x\": it is not a tensor");
  CHECK(pickled("\x80\x02i").starts_with("its pickle has operation 105 at byte 2"));
  CHECK(pickled("\x80\x02") == "it ends within its pickle");
  CHECK(pickled("s.") == "its pickle takes what it has not put");
  CHECK(pickled("h\x05.") == "its pickle recalls what it has not kept");
  CHECK(pickled("N.") == "what it holds is not a dictionary");
  const std::string long_text = text(std::string(257, 'a')), name = text("b");
  CHECK(pickled(long_text + name + "\x93.") == "its pickle has a name of more than 256 bytes");
  CHECK(pickled(name + long_text + "\x93.") == "its pickle has a name of more than 256 bytes");
  CHECK(pickled(name + name + "\x93.") == "what it holds is not a dictionary");
  CHECK(pickled("}q\x01h\x01" + text("x") + "h\x01s.").empty());  // contains itself
}

TEST_CASE("a file that is cut is refused, and damage anywhere does no harm") {
  for (const char* name : {"ckpt_head/rows_0-2/data_0.ckpt", "ckpt_head/rows_0-2/data_1.ckpt.gz"}) {
    CAPTURE(name);
    const std::string whole = content_of(golden_folder / name);
    for (std::size_t size = 0; size < whole.size(); size += 1 + size / 64)
      CHECK_FALSE(complaint(whole.substr(0, size)).empty());
    std::mt19937 random(1);
    for (int i = 0; i < 300; ++i) {
      std::string damaged = whole;
      damaged[random() % damaged.size()] ^= char(1 << random() % 8);
      complaint(damaged);  // an error or none: the sanitizers watch
    }
  }
}

TEST_CASE("a folder of samples is in the order of their numbers") {
  const TemporaryFolder folder;
  const std::string sample = content_of(golden_folder / "ckpt_head/rows_0-2/data_0.ckpt");
  std::filesystem::create_directories(folder / "rows_0-12");
  for (const char* name : {"data_10.ckpt", "data_9.ckpt", "data_x.ckpt", "vocab.pt"})
    put(folder / "rows_0-12" / name, sample);
  const SpecForgeFolder samples(folder / ".");
  REQUIRE(samples.size() == 2);
  CHECK(samples[0].tokenized().id == "rows_0-12/data_9.ckpt");
  CHECK(samples[1].tokenized().id == "rows_0-12/data_10.ckpt");
  put(folder / "data_9.ckpt.gz", sample);
  CHECK(mentions(error_of([&] { SpecForgeFolder(folder / "."); }), "has a sample twice"));
}

}  // namespace torch_archive_test
