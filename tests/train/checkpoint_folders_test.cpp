#include "dflash/train/checkpoint_folders.hpp"

#include <doctest/doctest.h>

#include <fstream>
#include <set>

#include "dflash/comm/thread_communicator.hpp"
#include "dflash/cpu.hpp"
#include "dflash/train/agreed_checkpoint.hpp"
#include "train/temporary_folder.hpp"

namespace checkpoint_folders_test {

using namespace dflash;
namespace fs = std::filesystem;

void write_all(const fs::path& folder) {
  for (const char* file : checkpoint_files) write_file(folder / file, "content");
}

std::set<std::string> names(const fs::path& folder) {
  std::set<std::string> found;
  for (const auto& entry : fs::directory_iterator(folder)) found.insert(entry.path().filename());
  return found;
}

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_CASE("checkpoints are named by their step") {
  CHECK(checkpoint_name(0) == "step-000000");
  CHECK(checkpoint_name(123) == "step-000123");
  CHECK(checkpoint_name(12345678) == "step-12345678");
}

TEST_CASE("the newest checkpoints stay, the others go") {
  for (const index_t keep : {0, 1, 2}) {
    TemporaryFolder folder;
    const CheckpointFolders folders(folder.path() / "inner" / "output", keep);
    CHECK_FALSE(folders.latest());
    for (const index_t step : {5, 10, 999999, 1000000}) {
      const auto path = folders.save(step, write_all);
      CHECK(*folders.latest() == path);
      CHECK(text_of(folders.output() / "latest") == checkpoint_name(step) + "\n");
    }
    CHECK(index_t(find_checkpoints(folders.output()).size()) == (keep == 0 ? 4 : keep));
    CHECK(index_t(names(folders.output()).size()) == (keep == 0 ? 4 : keep) + 1);
  }
}

TEST_CASE("the latest complete checkpoint is found although `latest` is stale or gone") {
  TemporaryFolder folder;
  const CheckpointFolders folders(folder.path());
  folders.save(1, write_all);
  folders.save(2, write_all);
  write_file(folder.path() / "latest", "step-000001\n");
  CHECK(latest_checkpoint(folder.path())->filename() == "step-000002");
  write_file(folder.path() / "latest", "step-000777\n");
  CHECK(latest_checkpoint(folder.path())->filename() == "step-000002");
  fs::remove(folder.path() / "latest");
  CHECK(latest_checkpoint(folder.path())->filename() == "step-000002");
  CHECK_FALSE(latest_checkpoint(folder.path() / "nowhere"));
}

TEST_CASE("what is half written or copied, or named otherwise, is no checkpoint") {
  TemporaryFolder folder;
  CheckpointFolders(folder.path()).save(1, write_all);
  for (const char* name : {"step-000009", ".tmp-step-000010-77-0", "step-11", "step-000012-old"}) {
    fs::create_directory(folder.path() / name);
    write_all(folder.path() / name);
  }
  fs::remove(folder.path() / "step-000009" / "optimizer.safetensors");
  CHECK(latest_checkpoint(folder.path())->filename() == "step-000001");
  const CheckpointFolders again(folder.path());
  CHECK(names(folder.path()) == std::set<std::string>{"latest", "step-000001", "step-000009",
                                                      "step-000012-old", "step-11"});
}

TEST_CASE("saving after a rewind drops the checkpoints of later steps") {
  TemporaryFolder folder;
  const CheckpointFolders folders(folder.path(), 3);
  for (const index_t step : {10, 20, 30}) folders.save(step, write_all);
  folders.save(15, write_all);
  CHECK(names(folder.path()) == std::set<std::string>{"latest", "step-000010", "step-000015"});
}

TEST_CASE("saving a step again replaces its checkpoint") {
  TemporaryFolder folder;
  const CheckpointFolders folders(folder.path(), 1);
  folders.save(10, write_all);
  const auto path = folders.save(10, [](const fs::path& where) {
    write_all(where);
    write_file(where / "config.json", "new");
  });
  CHECK(text_of(path / "config.json") == "new");
  CHECK(names(folder.path()) == std::set<std::string>{"latest", "step-000010"});
}

TEST_CASE("a second run is refused and leaves what the first is writing") {
  TemporaryFolder folder;
  const CheckpointFolders folders(folder.path());
  folders.save(1, [&](const fs::path& where) {
    CHECK_THROWS_WITH_AS(CheckpointFolders(folder.path()),
                         ("another process is writing to " + folder.path().string()).c_str(),
                         Error);
    write_all(where);
  });
  CHECK(names(folder.path()) == std::set<std::string>{"latest", "step-000001"});
}

TEST_CASE("ranks agree on the newest checkpoint, or are told who sees another") {
  TemporaryFolder shared, other;
  CheckpointFolders(shared.path()).save(3, write_all);
  const auto seen = [&](const fs::path& of_rank_2) {
    ThreadCommunicator::run(3, [&](ThreadCommunicator world) {
      CpuBackend<float> backend;
      const auto found =
          agreed_checkpoint(backend, world, world.rank() == 2 ? of_rank_2 : shared.path());
      CHECK(found->filename() == "step-000003");
    });
  };
  seen(shared.path());
  try {
    seen(other.path());
    FAIL("another folder was not noticed");
  } catch (const Error& error) {
    const std::string text = error.what();
    CAPTURE(text);
    CHECK(text.find("rank 2 sees no checkpoint there, rank 0 sees step-000003") !=
          std::string::npos);
  }
}

TEST_CASE("a folder that cannot be made and a negative number are errors") {
  TemporaryFolder folder;
  write_file(folder.path() / "file", "");
  CHECK_THROWS_AS(CheckpointFolders(folder.path() / "file" / "output"), Error);
  CHECK_THROWS_WITH_AS(CheckpointFolders(folder.path(), -1),
                       "the number of checkpoints to keep must be at least 0, got -1", Error);
}

}  // namespace checkpoint_folders_test
