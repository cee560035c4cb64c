#include "dflash/io/disk_space.hpp"

#include <doctest/doctest.h>

#include "io/temporary_folder.hpp"

namespace disk_space_test {

using namespace dflash;

TEST_CASE("space is asked of the disk of what exists of a path") {
  const TemporaryFolder folder;
  CHECK(free_disk_bytes(folder.path()) > 0);
  CHECK(free_disk_bytes(folder / "not/there/yet") > 0);
  expect_disk_space(folder / "not", 1);
  const std::string text = error_of([&] { expect_disk_space(folder / "not", index_t(1) << 60); });
  CHECK(text.starts_with((folder / "not").string() + " needs 1024.00 PiB more, but its disk has "));
}

TEST_CASE("bytes are written for people") {
  CHECK(bytes_text(0) == "0 bytes");
  CHECK(bytes_text(1023) == "1023 bytes");
  CHECK(bytes_text(1536) == "1.50 KiB");
  CHECK(bytes_text(index_t(5) << 40) == "5.00 TiB");
}

}  // namespace disk_space_test
