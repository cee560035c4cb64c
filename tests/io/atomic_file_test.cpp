#include "dflash/io/atomic_file.hpp"

#include <doctest/doctest.h>

#include "io/full_disk.hpp"
#include "io/temporary_folder.hpp"

namespace atomic_file_test {

using namespace dflash;

TEST_CASE("a file appears when it is committed, and replaces the old one at once") {
  const TemporaryFolder folder;
  const auto path = folder / "x";
  put(path, "old");
  {
    AtomicFile file(path);
    file.write("new", 3);
    CHECK(content_of(path) == "old");
    CHECK(files_below(folder.path()).size() == 2);
    file.write_at(1, "E", 1);
    file.write("!", 1);
    file.commit();
  }
  CHECK(files_below(folder.path()) == std::map<std::string, std::string>{{"x", "nEw!"}});
}

TEST_CASE("a file that is not committed leaves nothing behind") {
  const TemporaryFolder folder;
  {
    AtomicFile file(folder / "x");
    file.write("half", 4);
    file.reserve(1000);
  }
  CHECK(files_below(folder.path()).empty());
}

TEST_CASE("reserved space does not change the length of a file") {
  const TemporaryFolder folder;
  AtomicFile file(folder / "x");
  file.reserve(100000);
  file.write("abc", 3);
  file.commit();
  CHECK(content_of(folder / "x") == "abc");
}

TEST_CASE("two writers of one file do not meet") {
  const TemporaryFolder folder;
  AtomicFile first(folder / "x"), second(folder / "x");
  first.write("first", 5);
  second.write("second", 6);
  first.commit();
  second.commit();
  CHECK(files_below(folder.path()) == std::map<std::string, std::string>{{"x", "second"}});
}

TEST_CASE("errors name the path") {
  const TemporaryFolder folder;
  const auto path = folder / "absent/x";
  CHECK(error_of([&] { AtomicFile file(path); }) ==
        "cannot create " + path.string() + ": No such file or directory");
  std::filesystem::create_directory(folder / "x");
  std::filesystem::create_directory(folder / "x/y");
  CHECK(error_of([&] {
          write_file(folder / "x", "text");
        }).starts_with("cannot rename to " + (folder / "x").string() + ": "));
  CHECK(files_below(folder.path()).empty());
}

TEST_CASE("a disk that is full from the start or on the way leaves the old file") {
  const TemporaryFolder folder;
  const auto path = folder / "x";
  put(path, "old");
  for (const bool reserve : {true, false}) {
    const int status = with_file_limit(1000, [&] {
      AtomicFile file(path);
      file.write("begin", 5);
      const std::string text = error_of([&] {
        if (reserve) file.reserve(2000);
        for (int i = 0; i < 200; ++i) file.write("0123456789", 10);
      });
      return text.starts_with("cannot write " + path.string() + ": ") ? 0 : 1;
    });
    CHECK(status == 0);
    CHECK(files_below(folder.path()) == std::map<std::string, std::string>{{"x", "old"}});
  }
}

TEST_CASE("what killed writers left is removed, and nothing else") {
  const TemporaryFolder folder;
  put(folder / ".tmp-x-1-0", "half");
  std::filesystem::create_directory(folder / ".tmp-y-1-0");
  put(folder / ".tmp-y-1-0/a", "half");
  put(folder / "x", "whole");
  remove_temporaries(folder.path());
  CHECK(files_below(folder.path()) == std::map<std::string, std::string>{{"x", "whole"}});
}

}  // namespace atomic_file_test
