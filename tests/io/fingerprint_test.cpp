#include "dflash/io/fingerprint.hpp"

#include <doctest/doctest.h>

#include "io/temporary_folder.hpp"

namespace fingerprint_test {

using namespace dflash;

TEST_CASE("a fingerprint depends on content, order and boundaries") {
  const auto of = [](auto... parts) {
    Fingerprint fingerprint;
    (fingerprint.add(std::string_view(parts)), ...);
    return fingerprint.text();
  };
  CHECK(of("ab", "c") == of("ab", "c"));
  CHECK(of("ab", "c") != of("a", "bc"));
  CHECK(of("ab", "c") != of("c", "ab"));
  CHECK(of("") != of());
  CHECK(of("ab").size() == 21);
  CHECK(xxh3("", 0) == 0x2d06800538d394c2);  // from the algorithm's own test vectors
}

TEST_CASE("a file's fingerprint is that of its content") {
  const TemporaryFolder folder;
  put(folder / "a", "text");
  put(folder / "b", "text");
  put(folder / "c", "texT");
  CHECK(fingerprint_of_file(folder / "a") == fingerprint_of_file(folder / "b"));
  CHECK(fingerprint_of_file(folder / "a") != fingerprint_of_file(folder / "c"));
}

TEST_CASE("every byte of a small tensor counts, and the ends and samples of a large one") {
  std::vector<std::byte> bytes(std::size_t(3) << 20);
  const auto of = [&](index_t n) {
    return Fingerprint().add("w", TensorEntry{DType::u8, {n}, bytes.data()}).text();
  };
  for (const std::size_t at : {0u, 999u}) {
    const auto before = of(1000);
    bytes[at] = std::byte(1);
    CHECK(of(1000) != before);
  }
  for (const std::size_t at : {std::size_t(0), bytes.size() - 1}) {
    const auto before = of(index_t(bytes.size()));
    bytes[at] ^= std::byte(2);
    CHECK(of(index_t(bytes.size())) != before);
  }
}

}  // namespace fingerprint_test
