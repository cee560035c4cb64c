// The programs for GPUs, as a user runs them, on the emulated device and over the emulated NCCL.

#include "programs/programs.hpp"

namespace {

const Arguments few{"--data-path",  tiny_prompts, "--num-samples",   "4",
                    "--max-length", "40",         "--sample-filter", "adjacent-pair"};

Arguments steps(const std::filesystem::path& output) {
  return train_flags(output) + Arguments{"--batch-size", "2", "--max-steps", "2"};
}

/// A store that these programs have captured, and a draft that they have trained on it.
struct TrainedDraft {
  TemporaryFolder folder;
  std::filesystem::path store = folder / "store";
  Outcome capture =
      succeed("prepare_hidden_states", capture_flags(store) + few + Arguments{"--dtype", "target"});

  Outcome offline(const std::filesystem::path& output, const Arguments& more = {}) const {
    return succeed("train_offline", flags(output) + more);
  }
  Arguments flags(const std::filesystem::path& output) const {
    return steps(output) + Arguments{"--train-hidden-states-path", store};
  }
  static Outcome online(const std::filesystem::path& output, const Arguments& more = {}) {
    Arguments data = few;
    data[0] = "--train-data-path";
    return succeed("train_online", steps(output) + data + more);
  }
};

std::vector<double> losses(const std::filesystem::path& output) {
  std::vector<double> all;
  for (const auto& line : json_lines(output / "log.jsonl")) all.push_back(line.at("loss"));
  REQUIRE(all.size() == 2);
  return all;
}

/// The first step's losses differ by what the head's or the target's rounding does, or the order of
/// sums; the second's by what that makes of the weights, too.
void check_near(const std::vector<double>& actual, const std::vector<double>& expected,
                double first, double second) {
  CHECK(actual[0] == doctest::Approx(expected[0]).epsilon(first));
  CHECK(actual[1] == doctest::Approx(expected[1]).epsilon(second));
}

}  // namespace

TEST_CASE("the programs for GPUs capture, train and decode") {
  const TrainedDraft draft;
  const auto output = draft.folder / "offline", same = draft.folder / "online";
  draft.offline(output);
  draft.online(same);
  CHECK(log_without_speed(same) == log_without_speed(output));
  const auto said = succeed(
      "evaluate", {"--target-model-path", tiny_target, "--draft-model-path", output / "step-000002",
                   "--data-path", tiny_prompts, "--max-new-tokens", "4", "--limit", "1", "--json"});
  const auto result = nlohmann::json::parse(said.out);
  CHECK(result.at("prompts") == 1);
  CHECK(result.at("identical_to_greedy") == true);
}

TEST_CASE("ranks on GPUs, a head in fp8 and a target in int8 give the losses of one in bfloat16") {
  const TrainedDraft draft;
  const auto at = [&](const char* name) { return draft.folder / name; };
  draft.offline(at("one"));
  const auto expected = losses(at("one"));
  draft.offline(at("ranks"), {"--ranks", "2", "--tp-size", "2", "--sp-ulysses-size", "2"});
  check_near(losses(at("ranks")), expected, 1e-4, 2e-3);
  draft.offline(at("fp8"), {"--head-precision", "fp8"});
  check_near(losses(at("fp8")), expected, 3e-3, 2e-2);
  CHECK(losses(at("fp8"))[0] != expected[0]);
  draft.offline(at("fp8-ranks"), {"--head-precision", "fp8", "--ranks", "2", "--tp-size", "2"});
  check_near(losses(at("fp8-ranks")), losses(at("fp8")), 1e-4, 5e-3);
  draft.online(at("int8"), {"--target-weights", "int8"});
  check_near(losses(at("int8")), expected, 3e-3, 2e-2);
  CHECK(losses(at("int8"))[0] != expected[0]);
  const auto why = failure_of("train_offline", draft.flags(at("fp8")) + Arguments{"--resume"});
  CHECK_MESSAGE(mentions(why, "\"head_precision\" is \"fp8\" there"), why);
  CHECK(mentions(failure_of("train_offline", draft.flags(at("five")) + Arguments{"--ranks", "5"}),
                 "--ranks 5: there are 4 GPUs"));
}
