#include "dflash/import/gguf_file.hpp"

#include <doctest/doctest.h>

#include <random>

#include "import/bytes_of.hpp"
#include "io/temporary_folder.hpp"

namespace gguf_file_test {

using namespace dflash;

std::string text(const std::string& s) { return bytes_of(std::uint64_t(s.size())) + s; }
std::string number(std::uint32_t n) { return bytes_of(n); }
std::string wide(std::uint64_t n) { return bytes_of(n); }

std::string padded(std::string s, std::size_t alignment) {
  s.resize((s.size() + alignment - 1) / alignment * alignment);
  return s;
}

/// The entry of a tensor, extents fastest first.
std::string entry(const std::string& name, const std::vector<std::uint64_t>& extents,
                  std::uint32_t type, std::uint64_t offset) {
  std::string all = text(name) + number(std::uint32_t(extents.size()));
  for (const auto n : extents) all += wide(n);
  return all + number(type) + wide(offset);
}

/// A file of these keys and tensors, its data aligned to 16 bytes.
std::string gguf_of(std::uint64_t keys, const std::string& entries, std::uint64_t tensors,
                    const std::string& places, const std::string& data) {
  const std::string head = "GGUF" + number(3) + wide(tensors) + wide(keys + 1) +
                           text("general.alignment") + number(4) + number(16) + entries + places;
  return padded(head, 16) + data;
}

std::string two_by_three() {
  std::string data;
  for (int i = 0; i < 6; ++i) data += bytes_of(float(i));
  return gguf_of(2,
                 text("name") + number(8) + text("x") + text("list") + number(9) + number(5) +
                     wide(2) + number(7) + bytes_of(std::int32_t(-1)),
                 1, entry("w", {3, 2}, 0, 0), data);
}

std::string complaint(const std::string& content) {
  const TemporaryFolder folder;
  put(folder / "x.gguf", content);
  const std::string path = folder / "x.gguf";
  const std::string text = error_of([&] { GgufFile file(path); });
  if (text.empty()) return "";
  CHECK(text.starts_with(path + ": "));
  return text.substr(path.size() + 2);
}

TEST_CASE("keys, lists and tensors are read; shapes are row-major") {
  const TemporaryFolder folder;
  put(folder / "x.gguf", two_by_three());
  const GgufFile file(folder / "x.gguf");
  CHECK(file.metadata().at("name") == "x");
  CHECK(file.metadata().at("list") == nlohmann::json{7, -1});
  const GgufTensor& w = file.tensors().at("w");
  CHECK(w.shape == std::vector<index_t>{2, 3});
  std::vector<float> values(6);
  w.read(values.data());
  CHECK(values == std::vector<float>{0, 1, 2, 3, 4, 5});
}

TEST_CASE("a file whose sizes do not fit is refused") {
  const std::string data(64, '\0');
  const auto with = [&](const std::string& place) {
    return complaint(gguf_of(0, "", 1, place, data));
  };
  CHECK(with(entry("w", {16}, 0, 0)).empty());
  CHECK(with(entry("w", {17}, 0, 0)) == "tensor \"w\" does not lie in the file");
  CHECK(with(entry("w", {16}, 0, 16)) == "tensor \"w\" does not lie in the file");
  CHECK(with(entry("w", {16}, 0, ~std::uint64_t(0))) == "tensor \"w\" does not lie in the file");
  CHECK(with(entry("w", {1ull << 40, 1ull << 40}, 0, 0)) ==
        "tensor \"w\" has a shape that overflows");
  CHECK(with(entry("w", {33}, 8, 0)) == "tensor \"w\" has rows that are not whole blocks of Q8_0");
  CHECK(with(entry("w", {16}, 99, 0)) == "tensor \"w\" has the unknown type 99");
  CHECK(complaint("GGUX") == "it is no GGUF file");
  CHECK(complaint("GGUF" + number(1)).starts_with("its version is 1"));
  CHECK(complaint("GGUF" + number(3) + wide(~std::uint64_t(0)) + wide(0)) ==
        "it ends within its header");
  CHECK(complaint(gguf_of(1, text("l") + number(9) + number(9) + wide(1), 0, "", "")) ==
        "its header has a list of lists");
}

TEST_CASE("a file that is cut is refused, and damage anywhere does no harm") {
  const std::string whole = two_by_three();
  for (std::size_t size = 0; size < whole.size(); ++size)
    CHECK_FALSE(complaint(whole.substr(0, size)).empty());
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) {
    std::string damaged = whole;
    damaged[random() % damaged.size()] ^= char(1 << random() % 8);
    complaint(damaged);
  }
}

}  // namespace gguf_file_test
