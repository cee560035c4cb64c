#include "dflash/io/atomic_folder.hpp"

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <random>

#include "io/temporary_folder.hpp"

namespace atomic_folder_test {

using namespace dflash;

TEST_CASE("a folder appears when it is committed, and replaces the old one whole") {
  const TemporaryFolder folder;
  const auto path = folder / "outer/step";
  for (const std::string text : {"one", "two"}) {
    AtomicFolder next(path / "");
    write_file(next.path() / text, text);
    std::filesystem::create_directory(next.path() / "inner");
    put(next.path() / "inner/x", text);
    CHECK((text == "one") == !std::filesystem::exists(path));
    next.commit();
    const std::map<std::string, std::string> expected{{text, text}, {"inner/x", text}};
    CHECK(files_below(path) == expected);
  }
  CHECK(files_below(folder.path()).size() == 2);
}

TEST_CASE("a folder that is not committed leaves nothing behind") {
  const TemporaryFolder folder;
  {
    AtomicFolder next(folder / "step");
    put(next.path() / "x", "half");
  }
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("a writer killed at any moment leaves a complete folder, old or new") {
  const TemporaryFolder folder;
  const auto path = folder / "step";
  const auto write = [&](const std::string& text) {
    AtomicFolder next(path);
    write_file(next.path() / "a", text);
    write_file(next.path() / "b", text);
    next.commit();
  };
  const auto begin = std::chrono::steady_clock::now();
  write("first");
  const auto once = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - begin);
  std::mt19937 random(3);
  for (int round = 0; round < 30; ++round) {
    const pid_t child = ::fork();
    if (child == 0)
      for (int i = 0;; ++i) write(std::to_string(round) + " " + std::to_string(i));
    ::usleep(unsigned(random() % std::uint64_t(1 + 4 * once.count())));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    CHECK(files_below(path).size() == 2);
    CHECK_FALSE(content_of(path / "a").empty());
    CHECK(content_of(path / "a") == content_of(path / "b"));
  }
}

TEST_CASE("a folder that cannot be made is an error that names it") {
  const TemporaryFolder folder;
  put(folder / "file", "");
  CHECK(error_of([&] {
          AtomicFolder next(folder / "file/step");
        }).starts_with("cannot create " + (folder / "file/step").string() + ": "));
}

}  // namespace atomic_folder_test
