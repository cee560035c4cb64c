// The online trainer is the offline trainer, bit for bit, where the store keeps all bits.

#include "programs/programs.hpp"

namespace online_offline_test {

/// Loss and gradient norm of every step, as they are written.
std::vector<std::string> steps_of(const std::filesystem::path& output) {
  std::vector<std::string> steps;
  for (const auto& line : json_lines(output / "log.jsonl"))
    steps.push_back(line.at("loss").dump() + " " + line.at("grad_norm").dump());
  return steps;
}

TEST_CASE("training online gives the losses and weights of training offline, bit for bit") {
  const TemporaryFolder folder;
  const Arguments data{"--num-samples", "11",           "--sample-filter",
                       "adjacent-pair", "--max-length", "120"};
  const auto store = folder / "store";
  succeed("prepare_hidden_states", capture_flags(store) + data + Arguments{"--batch-size", "4"});
  struct Case {
    Arguments flags;
    std::string offline_threads, online_threads;
  };
  const Case cases[] = {
      {{"--seed", "1"}, "1", "1"},
      {{"--seed", "2", "--batch-size", "3"}, "1", "2"},
      {{"--seed", "3", "--batch-size", "2", "--accumulation-steps", "2"}, "3", "1"},
      {{"--seed", "4", "--accumulation-steps", "3", "--loss-decay-gamma", "4"}, "2", "2"},
      {{"--seed", "5", "--batch-size", "5", "--loss-type", "dpace"}, "2", "1"},
      {{"--seed", "6", "--batch-size", "2", "--block-size", "5", "--anchor-rule", "start"},
       "1",
       "1"},
  };
  std::vector<std::string> before;
  int number = 0;
  for (const Case& c : cases) {
    CAPTURE(number);
    const auto offline = folder / ("offline-" + std::to_string(number)),
               online = folder / ("online-" + std::to_string(number));
    ++number;
    const Arguments flags = c.flags + Arguments{"--max-steps", "8", "--save-interval", "0"};
    succeed("train_offline",
            train_flags(offline) + flags +
                Arguments{"--train-hidden-states-path", store, "--threads", c.offline_threads});
    succeed("train_online",
            train_flags(online) + flags + data +
                Arguments{"--train-data-path", tiny_prompts, "--threads", c.online_threads});
    const auto steps = steps_of(offline);
    CHECK(steps.size() == 8);
    CHECK(steps == steps_of(online));
    CHECK(steps != before);
    before = steps;
    for (const char* file : {"model.safetensors", "optimizer.safetensors", "config.json"})
      CHECK(content_of(offline / "step-000008" / file) ==
            content_of(online / "step-000008" / file));
  }
}

TEST_CASE("without a draft config both trainers make the same draft") {
  const TemporaryFolder folder;
  const Arguments target{"--target-model-path", tiny_target, "--threads", "1"};
  const Arguments data{"--num-samples", "9", "--sample-filter", "adjacent-pair"};
  const Arguments training =
      target + Arguments{"--num-draft-layers", "2", "--max-steps", "4", "--num-anchors", "8",
                         "--log-interval",     "1", "--seed",      "7"};
  succeed("prepare_hidden_states",
          target + data +
              Arguments{"--model-type", "dflash", "--num-draft-layers", "2", "--dtype", "f32",
                        "--data-path", tiny_prompts, "--output-path", folder / "store"});
  succeed("train_offline", training + Arguments{"--train-hidden-states-path", folder / "store",
                                                "--output-dir", folder / "offline"});
  succeed("train_online",
          training + data +
              Arguments{"--train-data-path", tiny_prompts, "--output-dir", folder / "online"});
  CHECK(log_without_speed(folder / "offline") == log_without_speed(folder / "online"));
  for (const char* file : {"model.safetensors", "config.json"})
    CHECK(content_of(folder / "offline" / "step-000004" / file) ==
          content_of(folder / "online" / "step-000004" / file));
}

}  // namespace online_offline_test
