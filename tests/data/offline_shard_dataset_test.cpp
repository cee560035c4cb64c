#include "dflash/data/offline_shard_dataset.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <thread>

#include "data/store_fixture.hpp"
#include "dflash/io/safetensors_writer.hpp"

namespace offline_shard_dataset_test {

using namespace dflash;

static_assert(Dataset<OfflineShardDataset>);

template <class T>
std::vector<T> values(View<const T, 1> view) {
  return {view.data, view.data + view.size()};
}

/// Opens a store and reads all of it as a trainer does; the first error, or "".
std::string complaint(const std::filesystem::path& folder) {
  return error_of([&] {
    const OfflineShardDataset dataset(folder);
    for (index_t i = 0; i < dataset.size(); ++i) all_rows(*dataset[i].features);
  });
}

void flip(const std::filesystem::path& path, index_t at) {
  std::string content = content_of(path);
  content[std::size_t(at)] ^= 1;
  put(path, content);
}

/// Where a tensor's data begins in a file.
index_t offset_in(const std::filesystem::path& path, const std::string& name) {
  const SafetensorsFile file(path);
  index_t before_end = index_t(std::filesystem::file_size(path)), bytes = 0;
  const std::byte* first = file.at(name).data;
  for (const auto& [other, tensor] : file.tensors()) {
    bytes += tensor.bytes();
    first = std::min(first, tensor.data);
  }
  return before_end - bytes + (file.at(name).data - first);
}

TEST_CASE("samples come back as they were written, in every type of store") {
  for (const char* model : {"dflash", "eagle3"}) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f8_e4m3}) {
      const TemporaryFolder folder;
      const StoreFixture data(25, dtype, model);
      data.capture(folder.path());
      const OfflineShardDataset dataset(folder.path());
      CHECK(dataset.size() == 25);
      CHECK(dataset.rows() == data.plan().rows());
      CHECK(dataset.description().layer_ids == data.description.layer_ids);
      CHECK(dataset.verify().empty());
      for (const index_t i : {24, 0, 7, 8, 9, 10, 11, 23}) {
        const Sample sample = dataset[i];
        CHECK(sample.id == data.samples[std::size_t(i)].id);
        CHECK(values(sample.tokens) == data.samples[std::size_t(i)].tokens);
        CHECK(values(sample.loss_mask) == data.samples[std::size_t(i)].loss_mask);
        CHECK(sample.features->width() == 12);
        const auto expected = data.rows(i, 12), found = all_rows(*sample.features);
        if (dtype == DType::f8_e4m3) {
          for (std::size_t k = 0; k < expected.size(); ++k)
            CHECK(found[k] == doctest::Approx(expected[k]).epsilon(0.07).scale(0.1));
        } else {
          CHECK(found == expected);
        }
        // A range of rows is the same rows.
        const index_t rows = sample.features->rows();
        std::vector<float> last_row(12);
        sample.features->read({rows - 1, rows}, last_row.data());
        CHECK(last_row == std::vector<float>(found.end() - 12, found.end()));
        CHECK_THROWS_AS(sample.features->read({0, rows + 1}, last_row.data()), Error);
        if (dtype == DType::f32 && data.description.has_last_hidden())
          CHECK(all_rows(*dataset.last_hidden(i)) == data.rows(i, 4));
      }
      CHECK_THROWS_AS(dataset[25], Error);
      CHECK_THROWS_AS(dataset[-1], Error);
    }
  }
}

TEST_CASE("views of a sample live as long as its features") {
  const TemporaryFolder folder;
  const StoreFixture data(5);
  data.capture(folder.path());
  Sample sample;
  {
    const OfflineShardDataset dataset(folder.path());
    sample = dataset[4];
  }
  CHECK(values(sample.tokens) == data.samples[4].tokens);
  CHECK(all_rows(*sample.features) == data.rows(4, 12));
}

TEST_CASE("a store that is not what the trainer needs is refused with field and both values") {
  const TemporaryFolder folder;
  StoreFixture(3).capture(folder.path());
  const std::string start = (folder / "store.json").string() + ": field ";
  const auto complaint_of = [&](const StoreExpectations& e) {
    return error_of([&] { OfflineShardDataset dataset(folder.path(), e); });
  };
  CHECK(complaint_of({.model_type = "dflash",
                      .target_fingerprint = "xxh3:1",
                      .tokenizer_fingerprint = "xxh3:2",
                      .layer_ids = {1, 5, 3},
                      .hidden_size = 4})
            .empty());
  CHECK(complaint_of({.model_type = "eagle3"}) ==
        start + "\"model_type\" is \"dflash\", but the trainer needs \"eagle3\"");
  CHECK(complaint_of({.target_fingerprint = "xxh3:7"}) ==
        start + "\"target_fingerprint\" is \"xxh3:1\", but the trainer needs \"xxh3:7\"");
  CHECK(complaint_of({.tokenizer_fingerprint = "xxh3:7"}) ==
        start + "\"tokenizer_fingerprint\" is \"xxh3:2\", but the trainer needs \"xxh3:7\"");
  CHECK(complaint_of({.layer_ids = {1, 3, 5}}) ==
        start + "\"layer_ids\" is [1,5,3], but the trainer needs [1,3,5]");
  CHECK(complaint_of({.hidden_size = 8}) ==
        start + "\"hidden_size\" is 4, but the trainer needs 8");
}

TEST_CASE("an unfinished store is refused unless asked for") {
  const TemporaryFolder folder;
  const StoreFixture data(25);
  data.capture(folder.path(), 15);
  CHECK(mentions(complaint(folder.path()), "is not finished: it has "));
  const OfflineShardDataset part(folder.path(), {.allow_unfinished = true});
  CHECK(part.size() > 0);
  CHECK(part.size() <= 15);
  CHECK(part.verify().empty());
}

TEST_CASE("damage names the file, the sample and what is wrong") {
  const TemporaryFolder folder;
  const StoreFixture data(25);
  data.capture(folder.path());
  const ShardPlan::Shard second = data.plan().shard(1);
  const auto path = folder / shard_name(1);
  const std::string whole = content_of(path), sample = std::to_string(second.samples.begin),
                    id = data.samples[std::size_t(second.samples.begin)].id;
  const auto damaged = [&](const std::string& tensor, index_t byte) {
    put(path, whole);
    flip(path, offset_in(path, tensor) + byte);
    CHECK(OfflineShardDataset(folder.path()).verify().size() > 0);
    return complaint(folder.path());
  };
  CHECK(damaged("features", 12 * 4) == path.string() + ": sample " + sample + " (\"" + id +
                                           "\"): row 1 of features does not match its checksum");
  CHECK(damaged("checksums", 0) == path.string() + ": sample " + sample + " (\"" + id +
                                       "\"): row 0 of features does not match its checksum");
  CHECK(damaged("tokens", 0) ==
        path.string() + ": sample " + sample + " (\"" + id +
            "\"): its id, tokens and loss_mask do not match their checksum");
  CHECK(mentions(damaged("loss_mask", 0), "sample " + sample + " ("));
  CHECK(mentions(damaged("id_bytes", 0), "sample " + sample + " ("));
  CHECK(mentions(damaged("row_offsets", 7), "sample " + sample + ": row_offsets say "));
  CHECK(mentions(damaged("id_offsets", 7), "sample " + sample + ": id_offsets say "));

  put(path, whole.substr(0, whole.size() - 1));
  CHECK(mentions(complaint(folder.path()), path.string() + ": tensor "));
  put(path, "");
  CHECK(mentions(complaint(folder.path()), path.string() + ": it has 0 bytes"));
  std::filesystem::remove(path);
  CHECK(mentions(complaint(folder.path()), "cannot open " + path.string()));
  const auto problems = OfflineShardDataset(folder.path()).verify();
  CHECK(problems.size() == 1);
  put(path, content_of(folder / shard_name(0)));
  CHECK(mentions(complaint(folder.path()), path.string() + " belongs to another store"));
}

TEST_CASE("damaged samples can be left out, and the others keep their order") {
  const TemporaryFolder folder;
  const StoreFixture data(25);
  data.capture(folder.path());
  const Range second = data.plan().shard(1).samples, last = data.plan().shard(2).samples;
  REQUIRE(second.size() > 1);
  flip(folder / shard_name(1), offset_in(folder / shard_name(1), "tokens"));
  std::filesystem::remove(folder / shard_name(2));
  OfflineShardDataset dataset(folder.path());
  CHECK(dataset.left_out().empty());
  const auto problems = dataset.leave_damaged_out();
  REQUIRE(problems.size() == 2);
  CHECK(mentions(problems[0], "sample " + std::to_string(second.begin) + " ("));
  CHECK(mentions(problems[1], "cannot open "));
  std::vector<index_t> damaged{second.begin};
  for (index_t i = last.begin; i < last.end; ++i) damaged.push_back(i);
  CHECK(dataset.left_out() == damaged);
  CHECK(dataset.size() == 25 - index_t(damaged.size()));
  index_t next = 0;
  for (index_t i = 0; i < 25; ++i)
    if (std::find(damaged.begin(), damaged.end(), i) == damaged.end())
      CHECK(dataset[next++].id == data.samples[std::size_t(i)].id);
  CHECK_THROWS_AS(dataset[next], Error);
}

TEST_CASE("verification finds the change of any byte of a shard") {
  const TemporaryFolder folder;
  StoreFixture data(4, DType::f8_e4m3, "eagle3");
  data.description.shard_bytes = 1 << 20;
  data.capture(folder.path());
  const auto path = folder / shard_name(0);
  const std::string whole = content_of(path);
  const OfflineShardDataset dataset(folder.path());
  index_t missed = 0;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    const auto change = [&](char byte) { std::fstream(path).seekp(std::streamoff(at)).put(byte); };
    change(char(whole[at] ^ 1));
    missed += dataset.verify().empty();
    change(whole[at]);
  }
  CHECK(missed == 0);
  CHECK(dataset.verify().empty());
}

TEST_CASE("headers that disagree with the folder's are refused") {
  const TemporaryFolder folder;
  const StoreFixture data(25);
  data.capture(folder.path());
  const auto description = data.plan().description();
  const std::string json = content_of(folder / "store.json"),
                    index = content_of(folder / "index.safetensors");
  const auto with_field = [&](const char* field, const nlohmann::json& value) {
    auto changed = nlohmann::json::parse(json);
    changed[field] = value;
    put(folder / "store.json", changed.dump());
    const std::string text = complaint(folder.path());
    put(folder / "store.json", json);
    return text;
  };
  CHECK(mentions(with_field("hidden_size", 8), "belongs to another store"));
  CHECK(mentions(with_field("layer_ids", {1, 5, 2}), "belongs to another store"));
  CHECK(mentions(with_field("rows", description.rows + 1), "but store.json says 25 with "));
  CHECK(mentions(with_field("samples", 24), "it lists 25 samples"));
  CHECK(mentions(with_field("samples", 26), "is not finished: it has 25 of 26 samples"));
  CHECK(with_field("target_name", "renamed").empty());

  const SafetensorsFile file(folder / "index.safetensors");
  const auto first = file.read<std::int64_t>("first_sample"),
             rows = file.read<std::int64_t>("rows");
  const auto with_index = [&](std::vector<std::int64_t> f, std::vector<std::int64_t> r) {
    const TensorData tensors[] = {{"first_sample", DType::i64, {index_t(f.size())}, f.data()},
                                  {"rows", DType::i64, {index_t(r.size())}, r.data()}};
    write_safetensors(folder / "index.safetensors", tensors);
    return complaint(folder.path());
  };
  CHECK(with_index(first, rows).empty());
  auto f = first, r = rows;
  f[1] += 1;
  CHECK(mentions(with_index(f, r), "is I64 ("));
  f = first, r[0] += 1, r[1] -= 1;
  CHECK(mentions(with_index(f, r), shard_name(0) + ": tensor \"features\" is F32 ("));
  f = first, r = rows, f[0] = -1;
  CHECK(mentions(with_index(f, r), "does not count up from 0"));
  f = first, std::swap(f[1], f[2]);
  CHECK(mentions(with_index(f, r), "does not count up from 0"));
  f = first, r[1] = -5;
  CHECK(mentions(with_index(f, r), "\"rows\" has the entry -5"));
  r = rows, r[1] = INT64_MAX;
  CHECK(mentions(with_index(f, r), "\"rows\" has the entry 9223372036854775807"));
  r = rows, r.pop_back();
  CHECK(mentions(with_index(f, r), "entries where "));
  CHECK(mentions(with_index({}, {}), "entries where 1 are expected"));
  std::filesystem::remove(folder / "index.safetensors");
  CHECK(mentions(complaint(folder.path()), "cannot open"));
  put(folder / "index.safetensors", index.substr(0, 50));
  CHECK(mentions(complaint(folder.path()), "index.safetensors: its header claims"));
}

TEST_CASE("threads may read the same store at once") {
  const TemporaryFolder folder;
  const StoreFixture data(25);
  data.capture(folder.path());
  const OfflineShardDataset dataset(folder.path());
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (std::size_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (index_t k = 0; k < 100; ++k) {
        const index_t i = (k * 7 + index_t(t)) % 25;
        wrong[t] += all_rows(*dataset[i].features) != data.rows(i, 12);
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4));
}

TEST_CASE("a store of a million samples opens without looking at its shards") {
  constexpr index_t samples = 1'000'000, per_shard = 10;
  const TemporaryFolder folder;
  StoreDescription d = StoreFixture(0).description;
  d.samples = samples;
  d.rows = 2000 * samples;
  write_store_description(folder / "store.json", d);
  std::vector<std::int64_t> first(samples / per_shard + 1), rows(samples / per_shard, 20'000);
  for (std::size_t k = 0; k < first.size(); ++k) first[k] = std::int64_t(k) * per_shard;
  const TensorData tensors[] = {{"first_sample", DType::i64, {index_t(first.size())}, first.data()},
                                {"rows", DType::i64, {index_t(rows.size())}, rows.data()}};
  write_safetensors(folder / "index.safetensors", tensors);
  const auto begin = std::chrono::steady_clock::now();
  const OfflineShardDataset dataset(folder.path());
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
  MESSAGE("opened in " << time.count() << " ms");
  CHECK(dataset.size() == samples);
  CHECK(time.count() < 1000);
  CHECK(mentions(error_of([&] { dataset[999'999]; }), "shard-099999.safetensors: No such file"));
}

}  // namespace offline_shard_dataset_test
