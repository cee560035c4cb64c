#include "dflash/io/safetensors.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "io/temporary_folder.hpp"

namespace safetensors_test {

using namespace dflash;

std::string length_bytes(std::uint64_t n) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += char(n >> (8 * i) & 0xff);
  return bytes;
}

std::string file_of(const std::string& header, std::size_t data_bytes) {
  return length_bytes(header.size()) + header + std::string(data_bytes, '\1');
}

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

/// What the reader says of this content, without the path in front.
std::string complaint(const std::string& content) {
  const TemporaryFolder folder;
  const auto path = folder / "x.safetensors";
  put(path, content);
  const std::string text = error_of([&] { SafetensorsFile file(path); });
  if (text.empty()) return "";
  CHECK(text.starts_with(path.string() + ": "));
  CHECK(text.find('\n') == std::string::npos);
  return text.substr(path.string().size() + 2);
}

TEST_CASE("a well-formed file is read, spaces and metadata included") {
  const TemporaryFolder folder;
  const auto path = folder / "x.safetensors";
  put(path, file_of(R"({"__metadata__":{"format":"pt"},"b":)" + entry("U8", "[]", "[8,9]") +
                        R"(,"a":)" + entry("I32", "[2,1]", "[0,8]") + R"(,"none":)" +
                        entry("F32", "[0,3]", "[9,9]") + "}   ",
                    9));
  const SafetensorsFile file(path);
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.tensors().size() == 3);
  CHECK(file.at("a").shape == std::vector<index_t>{2, 1});
  CHECK(file.read<std::int64_t>("a") == std::vector<std::int64_t>{0x01010101, 0x01010101});
  CHECK(file.read<float>("b") == std::vector<float>{1});
  CHECK(file.read<float>("none").empty());
  CHECK(file.contains("b"));
  CHECK_FALSE(file.contains("c"));
  CHECK(error_of([&] { file.at("c"); }) == path.string() + ": it has no tensor \"c\"");
  float out[2];
  CHECK(error_of([&] {
          file.read("a", {1, 2}, out);
        }) == path.string() + ": tensor \"a\" has shape (2, 1) where (1, 2) is expected");
  CHECK(error_of([&] { file.read<std::int8_t>("a"); }) ==
        path.string() + ": tensor \"a\": element 0 (I32) has no place in I8");
}

TEST_CASE("a file that is cut, too long or has a lying header length is refused") {
  CHECK(mentions(complaint(""), "0 bytes, too few"));
  CHECK(mentions(complaint("1234567"), "7 bytes, too few"));
  CHECK(mentions(complaint(length_bytes(0)), "does not begin with {"));
  CHECK(mentions(complaint(length_bytes(3) + "{}"), "claims 3 bytes where the file has 10"));
  CHECK(mentions(complaint(length_bytes(~std::uint64_t(0)) + "{}"), "claims 18446744073709551615"));
  CHECK(mentions(complaint(length_bytes(~std::uint64_t(0) - 7) + "{}"), "claims"));
  CHECK(mentions(complaint(file_of("{}", 1)), "end at byte 0 of the data, which has 1"));
  const std::string header = R"({"a":)" + entry("F32", "[2]", "[0,8]") + "}";
  CHECK(complaint(file_of(header, 8)).empty());
  CHECK(mentions(complaint(file_of(header, 7)),
                 "tensor \"a\" lies at bytes 0 to 8 of the data, which has 7"));
  CHECK(mentions(complaint(file_of(header, 9)), "end at byte 8 of the data, which has 9"));
  const std::string whole = file_of(header, 8);
  for (std::size_t n = 0; n < whole.size(); ++n) CHECK_FALSE(complaint(whole.substr(0, n)).empty());
}

TEST_CASE("a header longer than the limit is refused without reading it") {
  const TemporaryFolder folder;
  const auto path = folder / "x.safetensors";
  put(path, length_bytes(std::uint64_t(SafetensorsFile::largest_header) + 1));
  std::filesystem::resize_file(path, std::uintmax_t(SafetensorsFile::largest_header) + 100);
  CHECK(mentions(error_of([&] { SafetensorsFile file(path); }), "its header claims 100000001"));
}

TEST_CASE("a header that is not the expected JSON is refused") {
  CHECK(mentions(complaint(file_of("[]", 0)), "does not begin with {"));
  CHECK(mentions(complaint(file_of(" {}", 0)), "does not begin with {"));
  CHECK(mentions(complaint(file_of("{\"a\":}", 0)), "not valid JSON at byte 6"));
  CHECK(mentions(complaint(file_of("{}{}", 0)), "not valid JSON"));
  CHECK(mentions(complaint(file_of("{\"\xff\":1}", 0)), "not valid JSON"));
  CHECK(mentions(complaint(file_of("{\"a\":1e999}", 0)), "not valid JSON"));
  CHECK(mentions(complaint(file_of("{\"a\":[[[[[1]]]]]}", 0)), "nests too deeply"));
  CHECK(mentions(complaint(file_of("{\"a\":" + std::string(1000000, '['), 0)), "nests too deeply"));
  CHECK(mentions(complaint(file_of(R"({"__metadata__":3})", 0)), "__metadata__ is not an object"));
  CHECK(mentions(complaint(file_of(R"({"__metadata__":{"k":3}})", 0)), "\"k\""));
  const std::string a = R"("a":)" + entry("U8", "[1]", "[0,1]");
  CHECK(mentions(complaint(file_of("{" + a + "," + a + "}", 1)), "the key \"a\" twice"));
  CHECK(mentions(
      complaint(file_of(R"({"a":{"dtype":"U8","dtype":"I8","shape":[],"data_offsets":[0,1]}})", 1)),
      "the key \"dtype\" twice"));
  CHECK(mentions(complaint(file_of("{\"a\\nb\":3}", 0)), "tensor \"a\\x0ab\" has no dtype"));
}

TEST_CASE("a tensor whose type, shape or place is impossible is refused by name") {
  const auto one = [](const std::string& json, std::size_t data) {
    return complaint(file_of("{\"a\":" + json + "}", data));
  };
  CHECK(one("3", 0) == "tensor \"a\" has no dtype");
  CHECK(one(R"({"dtype":"U8","data_offsets":[0,1]})", 1) == "tensor \"a\" has no shape");
  CHECK(one(R"({"dtype":"U8","shape":[1]})", 1) == "tensor \"a\" has no data_offsets");
  CHECK(mentions(one(entry("F33", "[1]", "[0,4]"), 4), "unknown dtype \"F33\""));
  CHECK(mentions(one(R"({"dtype":7,"shape":[1],"data_offsets":[0,4]})", 4), "unknown dtype"));
  CHECK(mentions(one(entry("F32", "1", "[0,4]"), 4), "a shape that is not a list"));
  for (const char* extent : {"-1", "1.0", "\"1\"", "null", "9223372036854775808", "1e3"})
    CHECK(mentions(one(entry("F32", "[" + std::string(extent) + "]", "[0,4]"), 4), "not a size"));
  CHECK(mentions(one(entry("F32", "[4611686018427387904,4]", "[0,0]"), 0), "overflows"));
  CHECK(mentions(one(entry("F32", "[4611686018427387904,0]", "[0,0]"), 0), "overflows"));
  CHECK(mentions(one(entry("F32", "[3037000500,3037000500]", "[0,4]"), 4), "overflows"));
  for (const char* offsets : {"0", "[0]", "[0,4,4]", "[-4,0]", "[0,4.0]", "[0,\"4\"]", "{}"})
    CHECK(mentions(one(entry("F32", "[1]", offsets), 4), "not two sizes"));
  CHECK(mentions(one(entry("F32", "[1]", "[4,0]"), 4), "lies at bytes 4 to 0"));
  CHECK(mentions(one(entry("F32", "[1]", "[0,18446744073709551615]"), 4), "not two sizes"));
  CHECK(mentions(one(entry("F32", "[1]", "[0,9223372036854775807]"), 4), "which has 4"));
  CHECK(mentions(one(entry("F32", "[2]", "[0,4]"), 4), "takes 4 bytes where F32 (2) needs 8"));
  CHECK(mentions(one(entry("F32", "[1]", "[0,8]"), 8), "takes 8 bytes where F32 (1) needs 4"));
  CHECK(mentions(one(entry("F32", "[1]", "[4,8]"), 8), "there is a hole"));
  const auto two = [](const std::string& a, const std::string& b, std::size_t data) {
    return complaint(file_of("{\"a\":" + a + ",\"b\":" + b + "}", data));
  };
  CHECK(mentions(
      two(entry("F32", "[1]", "[0,4]"), entry("F32", "[1]", "[2,6]"), 6),
      "tensor \"b\" begins at byte 2 of the data where byte 4 is expected: tensors overlap"));
  CHECK(mentions(two(entry("F32", "[1]", "[0,4]"), entry("F32", "[1]", "[0,4]"), 4), "overlap"));
  CHECK(mentions(two(entry("F32", "[1]", "[0,4]"), entry("F32", "[1]", "[6,10]"), 10), "hole"));
}

TEST_CASE("misaligned tensors are read") {
  const TemporaryFolder folder;
  const auto path = folder / "x.safetensors";
  put(path, file_of(R"({"a":)" + entry("U8", "[1]", "[0,1]") + R"(,"b":)" +
                        entry("F64", "[1]", "[1,9]") + "}  ",
                    9));
  const SafetensorsFile file(path);
  std::uint64_t bits = 0x0101010101010101;
  double expected;
  std::memcpy(&expected, &bits, 8);
  CHECK(file.read<double>("b")[0] == expected);
}

TEST_CASE("what is no regular file is refused") {
  const TemporaryFolder folder;
  CHECK(mentions(error_of([&] { SafetensorsFile file(folder / "absent"); }),
                 "cannot open " + (folder / "absent").string() + ": No such file"));
  CHECK(mentions(error_of([&] { SafetensorsFile file(folder.path()); }), "not a regular file"));
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK(mentions(error_of([&] { SafetensorsFile file(folder / "pipe"); }), "not a regular file"));
}

TEST_CASE("random changes of a good file end in a good read or an Error") {
  const TemporaryFolder folder;
  const auto path = folder / "x.safetensors";
  const std::string good = file_of(
      R"({"__metadata__":{"k":"v"},"a":)" + entry("F32", "[2,2]", "[0,16]") + R"(,"b":)" +
          entry("I64", "[1]", "[16,24]") + R"(,"c":)" + entry("BOOL", "[3]", "[24,27]") + "}",
      27);
  std::mt19937 random(1);
  const std::string pieces[] = {
      "0", "9", "-", "[", "]", "{", "}", "\"", ",", "F64", "999999999999", "a", "\\u0000"};
  int refused = 0, read = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bad = good;
    for (int change = int(random() % 3); change >= 0; --change) {
      const std::size_t at = random() % bad.size();
      switch (random() % 5) {
        case 0:
          bad[at] = char(random());
          break;
        case 1:
          bad[at] ^= char(1 << random() % 8);
          break;
        case 2:
          bad.erase(at, random() % 8);
          break;
        case 3:
          bad.insert(at, pieces[random() % std::size(pieces)]);
          break;
        default:
          // The same with a header length that is right again.
          bad.insert(8 + at % (bad.size() - 8), pieces[random() % std::size(pieces)]);
          bad.replace(0, 8, length_bytes(bad.size() - 8 - 27));
      }
      if (bad.size() < 9) break;
    }
    put(path, bad);
    try {
      const SafetensorsFile file(path);
      for (const auto& [name, tensor] : file.tensors()) {
        CHECK(tensor.bytes() <= index_t(bad.size()));
        file.read<double>(name);
      }
      ++read;
    } catch (const Error& error) {
      CHECK(mentions(error.what(), path.string()));
      ++refused;
    }
  }
  CHECK(refused > 1000);
  CHECK(read > 50);
}

}  // namespace safetensors_test
