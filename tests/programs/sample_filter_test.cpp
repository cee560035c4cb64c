// Which samples the programs keep, and what they say of the others.

#include "programs/programs.hpp"

namespace sample_filter_test {

/// A tokenized line whose loss mask is given as text of 0 and 1.
std::string line_of(const std::string& id, const std::string& mask) {
  nlohmann::json line{
      {"id", id}, {"input_ids", nlohmann::json::array()}, {"loss_mask", nlohmann::json::array()}};
  for (std::size_t i = 0; i < mask.size(); ++i) {
    line["input_ids"].push_back(100 + i);
    line["loss_mask"].push_back(mask[i] - '0');
  }
  return line.dump() + "\n";
}

std::string repeated(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

/// Blocks are of 8 tokens: 16 supervised ones in whole blocks are wanted.
void write_samples(const std::filesystem::path& path) {
  put(path, line_of("answer", repeated("0", 4) + repeated("1", 28)) +     //
                line_of("short", repeated("0", 10) + repeated("1", 6)) +  // 6
                line_of("scattered", repeated("01", 20)) +                // 20, no neighbours
                line_of("silent", repeated("0", 40)) +                    // 0
                line_of("tail", repeated("0", 8) + repeated("1", 15)) +   // 8 in whole blocks
                line_of("exact", repeated("0", 8) + repeated("1", 16)) +  // 16
                line_of("empty", "") + "{\"input_ids\": [1, 2], \"loss_mask\": [1]}\n");
}

Outcome capture(const std::filesystem::path& data, const std::filesystem::path& store,
                const Arguments& more) {
  return succeed("prepare_hidden_states",
                 capture_flags(store) + Arguments{"--data-path", data, "--skip-bad-lines"} + more);
}

std::string ids_in(const std::filesystem::path& store) {
  const auto shard = store / "shard-000000.safetensors";
  const auto header = safetensors_header(shard);
  const std::string content = content_of(shard);
  const auto range = header["id_bytes"]["data_offsets"];
  std::uint64_t length = 0;
  std::memcpy(&length, content.data(), sizeof length);
  return content.substr(sizeof length + length + range[0].get<std::size_t>(),
                        range[1].get<std::size_t>() - range[0].get<std::size_t>());
}

TEST_CASE("samples are kept and dropped by the filter, and counted with the reasons") {
  const TemporaryFolder folder;
  const auto data = folder / "data.jsonl";
  write_samples(data);
  const auto min_loss = capture(data, folder / "min-loss", {});
  CHECK(mentions(min_loss.out,
                 "samples: 3 kept, 4 dropped (3: fewer than 16 supervised tokens in whole blocks) "
                 "(1: no tokens), 1 failed\n"));
  CHECK(min_loss.err == "skipped: " + data.string() +
                            ", line 8: has 2 \"input_ids\" but 1 entries in \"loss_mask\"\n");
  CHECK(ids_in(folder / "min-loss") == "answerscatteredexact");

  const auto pair = capture(data, folder / "pair", {"--sample-filter", "adjacent-pair"});
  CHECK(mentions(pair.out,
                 "samples: 4 kept, 3 dropped (1: no tokens) (2: no two neighbouring supervised "
                 "tokens), 1 failed\n"));
  CHECK(ids_in(folder / "pair") == "answershorttailexact");
  CHECK(nlohmann::json::parse(content_of(folder / "pair" / "store.json"))["sample_filter"] ==
        "adjacent-pair");
}

TEST_CASE("the online trainer filters as the generator does") {
  const TemporaryFolder folder;
  const auto data = folder / "data.jsonl";
  write_samples(data);
  for (const std::string filter : {"min-loss", "adjacent-pair"}) {
    const Arguments flags{"--sample-filter", filter};
    const auto prepared = lines_of(capture(data, folder / filter, flags).out);
    const auto trained =
        lines_of(succeed("train_online", train_flags(folder / (filter + "-draft")) + flags +
                                             Arguments{"--train-data-path", data, "--max-steps",
                                                       "6", "--skip-bad-lines"})
                     .out);
    REQUIRE(trained.size() > 6);
    CHECK(trained[0].starts_with("samples: "));
    CHECK(std::find(prepared.begin(), prepared.end(), trained[0]) != prepared.end());
    CHECK(json_lines(folder / (filter + "-draft") / "log.jsonl").size() == 6);
  }
}

TEST_CASE("a step without anything to learn is skipped, and the log says so") {
  const TemporaryFolder folder;
  put(folder / "data.jsonl", line_of("scattered", repeated("01", 20)));
  const auto output = folder / "draft";
  succeed("train_online",
          train_flags(output) + Arguments{"--train-data-path", folder / "data.jsonl", "--max-steps",
                                          "2", "--save-initial"});
  const auto log = json_lines(output / "log.jsonl");
  REQUIRE(log.size() == 2);
  CHECK(log[1]["loss"].is_null());
  CHECK(log[1]["skipped_steps"] == 1);
  CHECK(content_of(output / "step-000000" / "model.safetensors") ==
        content_of(output / "step-000002" / "model.safetensors"));
}

TEST_CASE("an EAGLE3 store has every sample, three layers and the last hidden states") {
  const TemporaryFolder folder;
  const auto data = folder / "data.jsonl";
  write_samples(data);
  const auto store = folder / "store";
  const auto outcome =
      succeed("prepare_hidden_states",
              {"--target-model-path", tiny_target, "--model-type", "eagle3", "--data-path", data,
               "--skip-bad-lines", "--output-path", store, "--threads", "1"});
  CHECK(mentions(outcome.out, "samples: 6 kept, 1 dropped (1: no tokens), 1 failed\n"));
  const auto header = safetensors_header(store / "shard-000000.safetensors");
  const int rows = 32 + 16 + 40 + 40 + 23 + 24;
  CHECK(header["features"]["shape"] == nlohmann::json{rows, 3 * 160});
  CHECK(header["last_hidden"]["shape"] == nlohmann::json{rows, 160});
  CHECK(header["features"]["dtype"] == "BF16");  // the target's own
  const auto description = nlohmann::json::parse(content_of(store / "store.json"));
  CHECK(description["model_type"] == "eagle3");
  CHECK(description["sample_filter"] == "none");
  const auto why = failure_of("train_offline", train_flags(folder / "draft") +
                                                   Arguments{"--train-hidden-states-path", store});
  CHECK(mentions(why, (store / "store.json").string()));
  CHECK(mentions(why, "eagle3"));
}

}  // namespace sample_filter_test
