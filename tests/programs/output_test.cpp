// Places where nothing can be written: one sentence that names them, and the run goes on once there
// is room.

#include "io/full_disk.hpp"
#include "programs/programs.hpp"

namespace output_test {

TEST_CASE("a full disk is one sentence, and the capture goes on later") {
  const TemporaryFolder folder;
  const auto flags = [&](const char* store) {
    return capture_flags(folder / store) + Arguments{"--num-samples", "30", "--shard-size", "1"};
  };
  succeed("prepare_hidden_states", flags("whole"));
  const auto expected = files_below(folder / "whole");
  for (const long limit : {100L, 5000L, 300'000L, 900'000L}) {
    CAPTURE(limit);
    const std::string store = "full-" + std::to_string(limit);
    const auto outcome = Process("prepare_hidden_states", flags(store.c_str()), limit).wait();
    CHECK(outcome.status == 1);
    CHECK(lines_of(outcome.err).size() == 1);
    check_named(outcome.err, {"prepare_hidden_states: ", (folder / store).string()});
    for (const auto& [name, content] : files_below(folder / store)) {
      CAPTURE(name);
      // What has its final name is what an uninterrupted capture writes; the index grows.
      if (name != "index.safetensors")
        CHECK((expected.count(name) > 0 && content == expected.at(name)));
    }
    succeed("prepare_hidden_states", flags(store.c_str()));
    CHECK(files_below(folder / store) == expected);
  }
}

TEST_CASE("a full disk stops training in one sentence, and the run goes on later") {
  const TemporaryFolder folder;
  const auto flags = [&](const char* output) {
    return train_flags(folder / output) +
           Arguments{"--train-data-path", tiny_prompts, "--num-samples",   "4",
                     "--max-steps",       "4",          "--save-interval", "2"};
  };
  succeed("train_online", flags("whole"));
  for (const long limit : {100L, 100'000L, 4'000'000L}) {
    CAPTURE(limit);
    const std::string output = "full-" + std::to_string(limit);
    const auto outcome = Process("train_online", flags(output.c_str()), limit).wait();
    CHECK(outcome.status == 1);
    CHECK(lines_of(outcome.err).size() == 1);
    check_named(outcome.err, {"train_online: ", (folder / output).string()});
    succeed("train_online", flags(output.c_str()) + Arguments{"--resume"});
    CHECK(log_without_speed(folder / output) == log_without_speed(folder / "whole"));
    CHECK(content_of(folder / output / "step-000004" / "optimizer.safetensors") ==
          content_of(folder / "whole" / "step-000004" / "optimizer.safetensors"));
  }
}

TEST_CASE("a disk that is too small for the store is refused before anything is captured") {
  const TemporaryFolder folder, errors;
  const int status = with_small_disk(folder.path(), 4 << 20, [&] {
    const auto outcome = run("prepare_hidden_states",
                             capture_flags(folder / "store") + Arguments{"--num-samples", "60"});
    put(errors / "text", outcome.err);
    return outcome.status;
  });
  if (status == no_small_disk) return;
  CHECK(status == 1);
  const auto why = content_of(errors / "text");
  CHECK(lines_of(why).size() == 1);
  check_named(why, {(folder / "store").string(), "free"});
}

TEST_CASE("an output that cannot be a folder is named") {
  const TemporaryFolder folder;
  put(folder / "file", "");
  check_named(failure_of("prepare_hidden_states",
                         capture_flags(folder / "file") + Arguments{"--num-samples", "4"}),
              {(folder / "file").string()});
  check_named(failure_of("train_online",
                         train_flags(folder / "file") +
                             Arguments{"--train-data-path", tiny_prompts, "--num-samples", "4"}),
              {(folder / "file").string()});
}

}  // namespace output_test
