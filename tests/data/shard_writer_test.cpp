#include "dflash/data/shard_writer.hpp"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <csignal>
#include <new>
#include <random>
#include <thread>

#include "data/store_fixture.hpp"
#include "io/full_disk.hpp"

namespace shard_writer_test {

using namespace dflash;

/// Runs f in a child that ends without cleaning up.
template <class F>
void in_lost_process(F&& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    f();
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
}

void change_byte(const std::filesystem::path& path, std::size_t at, char value) {
  std::string content = content_of(path);
  REQUIRE(at < content.size());
  content[at] = value;
  put(path, content);
}

bool has_temporaries(const std::filesystem::path& folder) {
  for (const auto& [name, content] : files_below(folder))
    if (name.starts_with(temporary_prefix)) return true;
  return false;
}

TEST_CASE("a capture that ends after any sample is continued to the same store") {
  const TemporaryFolder whole;
  const StoreFixture data(12, DType::bf16);
  data.capture(whole.path());
  const auto expected = files_below(whole.path());
  const ShardPlan plan = data.plan();
  bool left_behind = false;
  for (index_t first = 0; first <= 12; ++first) {
    const TemporaryFolder folder;
    in_lost_process([&] {
      ShardWriter writer(folder.path(), plan);
      while (writer.next() < first) data.write_next(writer);
      ::_exit(0);
    });
    left_behind |= has_temporaries(folder.path());
    index_t stored = 0;
    for (index_t k = 0; k < plan.shards(); ++k)
      if (plan.shard(k).samples.end <= first) stored = plan.shard(k).samples.end;
    CHECK(ShardWriter(folder.path(), plan).next() == stored);
    CHECK_FALSE(has_temporaries(folder.path()));
    data.capture(folder.path());
    CHECK(files_below(folder.path()) == expected);
  }
  CHECK(left_behind);
}

TEST_CASE("two writers of one store at a time are refused") {
  const TemporaryFolder folder;
  const StoreFixture data(3);
  const ShardWriter writer(folder.path(), data.plan());
  CHECK(error_of([&] { data.capture(folder.path()); }) ==
        "another process is writing to " + folder.path().string());
}

TEST_CASE("a capture killed at random moments ends up as an uninterrupted one") {
  StoreFixture data(400);
  data.description.shard_bytes = 8000;
  const TemporaryFolder whole, folder;
  data.capture(whole.path());
  // The child counts its samples where the parent sees them.
  void* shared = ::mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(shared != MAP_FAILED);
  auto* written = new (shared) std::atomic<int>;
  std::mt19937 random(11);
  int killed = 0, status = 1;
  for (int round = 0; round < 40 && status != 0; ++round) {
    *written = 0;
    const pid_t child = ::fork();
    if (child == 0) {
      ShardWriter writer(folder.path(), data.plan());
      for (; writer.next() < 400; ++*written) data.write_next(writer);
      ::_exit(0);
    }
    const int moment = int(random() % 60);
    bool ended = false;
    while (*written < moment && !ended) {
      ended = ::waitpid(child, &status, WNOHANG) != 0;
      ::usleep(20);
    }
    if (!ended) {
      ::usleep(unsigned(random() % 300));
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
    }
    killed += status != 0;
  }
  ::munmap(shared, sizeof(std::atomic<int>));
  data.capture(folder.path());
  CHECK(killed > 0);
  CHECK(files_below(folder.path()) == files_below(whole.path()));
  CHECK(OfflineShardDataset(folder.path()).verify().empty());
}

TEST_CASE("a capture writes shards that are missing, cut or another store's, and no others") {
  const TemporaryFolder whole;
  const StoreFixture data(25);
  data.capture(whole.path());
  const auto expected = files_below(whole.path());
  const ShardPlan plan = data.plan();
  REQUIRE(plan.shards() > 3);
  for (const int damage : {0, 1, 2, 3}) {
    const TemporaryFolder folder;
    std::filesystem::copy(whole.path(), folder.path(), std::filesystem::copy_options::recursive);
    const auto shard = folder / shard_name(2);
    if (damage == 0) std::filesystem::remove(shard);
    if (damage == 1) std::filesystem::resize_file(shard, 5000);
    if (damage == 2) std::filesystem::remove(folder / "index.safetensors");
    if (damage == 3) change_byte(shard, content_of(shard).find("\"shard\":\"2\"") + 9, '7');
    const auto kept = std::filesystem::last_write_time(folder / shard_name(3));
    CHECK(ShardWriter(folder.path(), plan).next() ==
          (damage == 2 ? 25 : plan.shard(2).samples.begin));
    data.capture(folder.path());
    CHECK(files_below(folder.path()) == expected);
    CHECK(std::filesystem::last_write_time(folder / shard_name(3)) == kept);
  }
}

TEST_CASE(
    "writers that share the missing shards make the store of one, after an interruption too") {
  const TemporaryFolder whole;
  const StoreFixture data(60);
  data.capture(whole.path());
  const ShardPlan plan = data.plan();
  REQUIRE(plan.shards() > 12);
  for (const std::size_t writers : {2, 3, 5}) {
    CAPTURE(writers);
    const TemporaryFolder folder;
    for (const bool interrupted : {true, false}) {
      StoreFolder store(folder.path(), plan);
      CHECK(store.missing().empty() == false);
      std::vector<std::vector<index_t>> shares(writers);
      const auto runs = plan.runs(store.missing(), 20);
      for (std::size_t i = 0; i < runs.size(); ++i)
        shares[i % writers].insert(shares[i % writers].end(), runs[i].begin(), runs[i].end());
      std::vector<std::thread> threads;
      for (std::size_t w = 0; w < writers; ++w)
        threads.emplace_back([&, w] {
          ShardWriter writer(folder.path(), plan, shares[w]);
          // The first writer stops before its first shard is full: others come to lie behind a gap.
          index_t most = !interrupted ? 60 : w == 0 ? 0 : 15;
          while (writer.next() < plan.size() && most-- > 0) data.write_next(writer);
        });
      for (auto& thread : threads) thread.join();
      store.update();
      const OfflineShardDataset dataset(folder.path(), {.allow_unfinished = true});
      CHECK(dataset.size() == (interrupted ? 0 : 60));
    }
    CHECK(files_below(folder.path()) == files_below(whole.path()));
  }
}

TEST_CASE("a finished store is opened and left as it is") {
  const TemporaryFolder folder;
  const StoreFixture data(10);
  data.capture(folder.path());
  const auto before = std::filesystem::last_write_time(folder / "index.safetensors");
  CHECK(ShardWriter(folder.path(), data.plan()).next() == 10);
  CHECK(StoreFolder(folder.path(), data.plan()).missing_bytes() == 0);
  CHECK(std::filesystem::last_write_time(folder / "index.safetensors") == before);
}

TEST_CASE("a store of other data or another description is not continued") {
  const TemporaryFolder folder;
  const StoreFixture data(10);
  data.capture(folder.path(), 5);
  StoreFixture other = data;
  other.description.hidden_size = 8;
  CHECK(error_of([&] { other.capture(folder.path()); }) ==
        (folder / "store.json").string() + ": field \"hidden_size\" is 4, but now it would be 8");
  other = data;
  other.samples[9].tokens[0] = 77;
  CHECK(mentions(error_of([&] { other.capture(folder.path()); }), "\"data_fingerprint\""));
  CHECK(mentions(error_of([&] { StoreFixture(11).capture(folder.path()); }), "\"samples\" is 10"));
  std::filesystem::remove(folder / "store.json");
  CHECK(mentions(error_of([&] { data.capture(folder.path()); }), "has shards but no store.json"));
}

TEST_CASE("a store without shards takes another description") {
  const TemporaryFolder folder, whole;
  StoreFixture data(10);
  data.capture(folder.path(), 0);
  data.description.target_fingerprint = "xxh3:3";
  data.capture(folder.path());
  data.capture(whole.path());
  CHECK(files_below(folder.path()) == files_below(whole.path()));
}

TEST_CASE("samples other than the planned are refused, and rows that do not match") {
  const TemporaryFolder folder;
  const StoreFixture data(3);
  ShardWriter writer(folder.path(), data.plan());
  const std::vector<float> rows(13 * 12);
  const auto length = index_t(data.samples[0].tokens.size());
  CHECK(mentions(error_of([&] { writer.begin(data.samples[1]); }),
                 "sample 0 (\"id-1\") is not the one that was planned there"));
  CHECK_THROWS_AS(
      writer.write(data.samples[0], View<const float, 2>{rows.data(), {length + 1, 12}}), Error);
  writer.begin(data.samples[0]);
  CHECK_THROWS_AS(writer.append(View<const float, 2>{rows.data(), {length, 11}}), Error);
  CHECK_THROWS_AS(writer.append(View<const float, 2>{rows.data(), {length + 1, 12}}), Error);
  if (length > 0) CHECK_THROWS_AS(writer.begin(data.samples[1]), Error);
}

TEST_CASE_TEMPLATE("numbers that are not finite are refused with their sample", T, float,
                   bfloat16) {
  const TemporaryFolder folder;
  const StoreFixture data(3, DType::bf16, "eagle3");
  ShardWriter writer(folder.path(), data.plan());
  data.write_next(writer);
  const auto length = index_t(data.samples[1].tokens.size());
  std::vector<T> rows(std::size_t(length) * 12), last(std::size_t(length) * 4);
  const auto append = [&] {
    writer.append(View<const T, 2>{rows.data(), {length, 12}}, {last.data(), {length, 4}});
  };
  writer.begin(data.samples[1]);
  for (auto* values : {&rows, &last})
    for (const float wrong : {INFINITY, -INFINITY, NAN}) {
      values->back() = T(wrong);
      CHECK(
          mentions(error_of(append), "sample 1 (\"id-1\") has hidden states that are not finite"));
      values->back() = T(1.0f);
    }
  append();
  data.write_next(writer);
  CHECK(writer.next() == 3);
}

TEST_CASE("rows may come in pieces, and as bfloat16") {
  const TemporaryFolder whole, folder;
  const StoreFixture data(9, DType::bf16, "eagle3");
  data.capture(whole.path());
  ShardWriter writer(folder.path(), data.plan());
  const auto brain = [](const std::vector<float>& values) {
    std::vector<bfloat16> out;
    for (const float x : values) out.emplace_back(x);
    return out;
  };
  for (index_t i = 0; i < 9; ++i) {
    const auto features = brain(data.rows(i, 12)), last = brain(data.rows(i, 4));
    writer.begin(data.samples[std::size_t(i)]);
    for (index_t row = 0; row < index_t(features.size()) / 12; ++row)
      writer.append(View<const bfloat16, 2>{&features[std::size_t(row * 12)], {1, 12}},
                    {&last[std::size_t(row * 4)], {1, 4}});
  }
  CHECK(files_below(folder.path()) == files_below(whole.path()));
}

TEST_CASE("samples without tokens and stores without samples are stored too") {
  const TemporaryFolder folder, empty;
  StoreFixture data(3);
  data.samples[1] = {"nothing", {}, {}};
  data.samples[2] = {"nothing more", {}, {}};
  data.capture(folder.path());
  const OfflineShardDataset dataset(folder.path());
  CHECK(dataset.size() == 3);
  CHECK(dataset[1].tokens.size() == 0);
  CHECK(dataset[2].id == "nothing more");
  CHECK(dataset[2].features->rows() == 0);
  StoreFixture(0).capture(empty.path());
  CHECK(OfflineShardDataset(empty.path()).size() == 0);
}

TEST_CASE("a full disk is one sentence, leaves no half shard, and the capture goes on later") {
  const TemporaryFolder whole, folder;
  const StoreFixture data(25);
  data.capture(whole.path());
  index_t largest = 0;
  for (index_t k = 1; k < data.plan().shards(); ++k)
    largest = std::max(largest, data.plan().file_bytes(k));
  const int status = with_file_limit(largest - 1, [&] {
    const std::string text = error_of([&] { data.capture(folder.path()); });
    return mentions(text, "cannot write " + (folder / "shard-").string()) &&
                   text.find('\n') == std::string::npos && !has_temporaries(folder.path())
               ? 0
               : 1;
  });
  CHECK(status == 0);
  for (const auto& [name, content] : files_below(folder.path()))
    if (name != "index.safetensors") CHECK(content == content_of(whole / name));
  data.capture(folder.path());
  CHECK(files_below(folder.path()) == files_below(whole.path()));
}

TEST_CASE("a real full disk, where one can be mounted, says so") {
  const TemporaryFolder folder;
  const int status = with_small_disk(folder.path(), 40'000, [&] {
    StoreFixture data(200);
    data.description.shard_bytes = 10'000;
    const std::string text = error_of([&] { data.capture(folder.path()); });
    const bool sentence = text.starts_with("cannot write " + (folder / "").string()) &&
                          text.ends_with(": No space left on device");
    const std::string space =
        error_of([&] { StoreFolder(folder.path(), data.plan()).expect_space(); });
    const OfflineShardDataset part(folder.path(), {.allow_unfinished = true});
    const bool usable = part.size() > 0 && part.verify().empty();
    return sentence && mentions(space, "more, but its disk has ") && usable ? 0 : 1;
  });
  if (status == no_small_disk)
    MESSAGE("no small disk can be mounted here: not checked");
  else
    CHECK(status == 0);
}

}  // namespace shard_writer_test
