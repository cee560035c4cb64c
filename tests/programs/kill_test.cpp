// Programs that are killed at random moments and run again.

#include <random>

#include "programs/programs.hpp"

namespace kill_test {

/// Starts a program and kills it once `far_enough()`, and a random while later. Returns whether it
/// was killed before it ended.
template <class Condition>
bool killed(const std::string& program, const Arguments& arguments, std::mt19937& random,
            Condition far_enough) {
  Process process(program, arguments);
  while (!process.ended() && !far_enough()) ::usleep(200);
  ::usleep(unsigned(random() % 20000));
  process.kill();
  const Outcome outcome = process.wait();
  INFO(program, " says ", outcome.err);
  REQUIRE((outcome.status == 0 || outcome.status == 128 + SIGKILL));
  return outcome.status != 0;
}

long count_names(const std::filesystem::path& folder, const std::string& prefix) {
  long count = 0;
  std::error_code missing;
  for (const auto& entry : std::filesystem::directory_iterator(folder, missing))
    count += entry.path().filename().string().starts_with(prefix) ? 1 : 0;
  return count;
}

/// Complete lines of a log that may be being written.
long count_lines(const std::filesystem::path& output) {
  const auto text = content_of(output / "log.jsonl");
  return std::count(text.begin(), text.end(), '\n');
}

/// All files of a folder but the log, whose speeds differ.
std::map<std::string, std::string> checkpoints_of(const std::filesystem::path& output) {
  auto files = files_below(output);
  files.erase("log.jsonl");
  return files;
}

TEST_CASE("a capture killed at random moments and continued stores the same bytes") {
  const TemporaryFolder folder;
  const auto flags = [&](const char* store) {
    return capture_flags(folder / store) +
           Arguments{"--num-samples", "60", "--sample-filter", "adjacent-pair",
                     "--shard-size",  "1",  "--batch-size",    "3"};
  };
  succeed("prepare_hidden_states", flags("whole"));
  const auto expected = files_below(folder / "whole");
  const long shards = count_names(folder / "whole", "shard-");
  REQUIRE(shards > 8);

  std::mt19937 random(3);
  int kills = 0, continued = 0;
  long stored = 0;
  for (int round = 0; round < 6; ++round) {
    const long until = stored + long(random() % 3);
    kills += killed("prepare_hidden_states", flags("killed"), random,
                    [&] { return count_names(folder / "killed", "shard-") >= until; });
    stored = count_names(folder / "killed", "shard-");
    continued += stored > 0 && stored < shards;
  }
  CHECK(kills > 0);
  CHECK(continued > 0);
  const auto last = succeed("prepare_hidden_states", flags("killed"));
  CHECK(mentions(last.out, stored < shards ? "continuing behind " : "nothing to do"));
  CHECK(files_below(folder / "killed") == expected);

  const auto again = succeed("prepare_hidden_states", flags("killed"));
  CHECK(mentions(again.out, "nothing to do, the store is complete"));
  CHECK(mentions(again.out, "samples: 60 kept, 0 dropped, 0 failed"));
  CHECK(files_below(folder / "killed") == expected);
}

TEST_CASE("training killed at random moments and resumed is the uninterrupted run, bit for bit") {
  const TemporaryFolder folder;
  const Arguments data{"--num-samples", "7", "--sample-filter", "adjacent-pair"};
  succeed("prepare_hidden_states", capture_flags(folder / "store") + data);
  // A checkpoint between two log lines: what a line says must not depend on where the run stopped.
  const Arguments training{"--max-steps",     "12", "--batch-size",   "2",
                           "--save-interval", "4",  "--warmup-ratio", "0.3"};
  struct Case {
    std::string program;
    Arguments flags;
  };
  const Case cases[] = {
      {"train_offline", training + Arguments{"--train-hidden-states-path", folder / "store"}},
      {"train_offline",
       training + Arguments{"--train-hidden-states-path", folder / "store", "--log-interval", "3",
                            "--accumulation-steps", "2", "--max-checkpoints", "2"}},
      {"train_online", training + data + Arguments{"--train-data-path", tiny_prompts}}};
  std::mt19937 random(5);
  int number = 0;
  for (const Case& c : cases) {
    CAPTURE(number);
    const auto whole = folder / ("whole-" + std::to_string(number)),
               parts = folder / ("parts-" + std::to_string(number));
    ++number;
    succeed(c.program, train_flags(whole) + c.flags);
    const auto expected = checkpoints_of(whole);
    const auto flags = train_flags(parts) + c.flags + Arguments{"--resume"};
    int kills = 0;
    bool resumed = false;
    for (int round = 0; round < 5; ++round) {
      const bool first_checkpoint = round == 1;
      const long until = count_lines(parts) + long(random() % 4);
      kills += killed(c.program, flags, random, [&] {
        return first_checkpoint ? std::filesystem::exists(parts / "step-000004")
                                : count_lines(parts) >= until;
      });
      resumed |= count_names(parts, "step-") > 0 && !std::filesystem::exists(parts / "step-000012");
    }
    const auto last = succeed(c.program, flags);
    CHECK(kills > 0);
    if (resumed) CHECK(mentions(last.out, "resuming from " + parts.string() + "/step-"));
    CHECK(checkpoints_of(parts) == expected);
    CHECK(log_without_speed(parts) == log_without_speed(whole));
  }
}

TEST_CASE("a run is not resumed with options that it did not have") {
  const TemporaryFolder folder;
  succeed("prepare_hidden_states",
          capture_flags(folder / "store") + Arguments{"--num-samples", "6"});
  succeed("prepare_hidden_states",
          capture_flags(folder / "other") + Arguments{"--num-samples", "5"});
  succeed("prepare_hidden_states", capture_flags(folder / "rounded") +
                                       Arguments{"--num-samples", "6", "--target-weights", "int8"});
  const auto output = folder / "draft";
  const auto flags = train_flags(output) +
                     Arguments{"--train-hidden-states-path", folder / "store", "--max-steps", "2"};
  // --resume in an empty folder begins.
  CHECK_FALSE(mentions(succeed("train_offline", flags + Arguments{"--resume"}).out, "resuming"));
  const auto expected = checkpoints_of(output);
  CHECK(failure_of("train_offline", flags) ==
        (output / "step-000002").string() +
            " is a checkpoint of an earlier run: give --resume or another --output-dir");
  const std::string start = (output / "step-000002" / "trainer_state.json").string() +
                            ": the run cannot go on with other options: ";
  struct Case {
    Arguments flags;
    std::string what;
  };
  const Case cases[] = {
      {{"--learning-rate", "1e-3"}, "\"learning_rate\" is 0.0006 there, but 0.001 here"},
      {{"--seed", "7"}, "\"seed\" is 42 there, but 7 here"},
      {{"--batch-size", "2"}, "\"batch_size\" is 1 there, but 2 here"},
      {{"--max-steps", "3"}, "\"total_steps\" is 2 there, but 3 here"},
      {{"--num-anchors", "9"}, "\"num_anchors\" is 8 there, but 9 here"},
      {{"--loss-type", "dpace"}, "\"loss_type\" is \"dflash\" there, but \"dpace\" here"},
      {{"--block-size", "4"}, "\"draft.block_size\" is 8 there, but 4 here"},
      {{"--mask-token-id", "5"}, "\"draft.dflash_config.mask_token_id\" is 2047 there, but 5 here"},
      {{"--train-hidden-states-path", folder / "other"}, "\"data\" is \"xxh3:"},
      {{"--train-hidden-states-path", folder / "rounded"},
       "\"features.precision\" is \"fp32\" there, but \"fp32, weights in int8\" here"},
  };
  for (const Case& c : cases) {
    const auto why = failure_of("train_offline", flags + c.flags + Arguments{"--resume"});
    CHECK_MESSAGE(why.starts_with(start + c.what), why);
  }
  CHECK(checkpoints_of(output) == expected);
  // Another target gives other features of the same tokens.
  const auto online =
      train_flags(folder / "online") +
      Arguments{"--train-data-path", tiny_prompts, "--num-samples", "4", "--max-steps", "1"};
  succeed("train_online", online);
  copy_folder(tiny_target, folder / "target");
  std::string weights = content_of(folder / "target" / "model.safetensors");
  weights[weights.size() - 100] = char(weights[weights.size() - 100] ^ 1);
  put(folder / "target" / "model.safetensors", weights);
  const auto why = failure_of(
      "train_online", online + Arguments{"--resume", "--target-model-path", folder / "target"});
  CHECK_MESSAGE(mentions(why, "other options: \"target\" is \"xxh3:"), why);
  // What does not change the result may differ.
  succeed("train_offline", flags + Arguments{"--resume", "--threads", "2", "--log-interval", "5"});
  CHECK(checkpoints_of(output) == expected);
}

}  // namespace kill_test
