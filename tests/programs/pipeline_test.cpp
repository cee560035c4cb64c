// The programs one after the other, as a user runs them.

#include <pty.h>

#include <set>

#include "programs/programs.hpp"

namespace pipeline_test {

/// A store of a few samples and a draft trained on it for ten steps.
struct TrainedDraft {
  TemporaryFolder folder;
  std::filesystem::path store = folder / "store", output = folder / "draft";
  Outcome capture = succeed("prepare_hidden_states", capture_flags(store) + more_samples);
  Outcome training = succeed("train_offline", flags(output));

  inline static const Arguments more_samples{"--num-samples", "24", "--sample-filter",
                                             "adjacent-pair"};
  Arguments flags(const std::filesystem::path& where) const {
    return train_flags(where) + Arguments{"--train-hidden-states-path",
                                          store,
                                          "--batch-size",
                                          "2",
                                          "--max-steps",
                                          "10",
                                          "--save-interval",
                                          "5"};
  }
  std::filesystem::path checkpoint() const { return output / "step-000010"; }
};

Arguments evaluate_flags(const std::filesystem::path& draft) {
  return {"--target-model-path",
          tiny_target,
          "--draft-model-path",
          draft,
          "--data-path",
          tiny_target / "prompts-eval.jsonl",
          "--max-new-tokens",
          "24",
          "--limit",
          "4",
          "--threads",
          "1"};
}

std::set<std::string> keys_of(const nlohmann::json& object) {
  std::set<std::string> keys;
  for (const auto& [key, value] : object.items()) keys.insert(key);
  return keys;
}

/// The only JSON object that a program printed.
nlohmann::json only_object(const Outcome& outcome) {
  const auto lines = lines_of(outcome.out);
  REQUIRE(lines.size() == 1);
  return nlohmann::json::parse(lines[0]);
}

/// The same without what depends on the machine's speed.
nlohmann::json without_speed(nlohmann::json result) {
  result.erase("tokens_per_second");
  result.erase("greedy_tokens_per_second");
  return result;
}

/// Everything that a program prints to a terminal.
std::string on_a_terminal(const std::string& program, const Arguments& arguments) {
  int terminal = -1;
  const pid_t child = ::forkpty(&terminal, nullptr, nullptr, nullptr);
  if (child == 0) {
    const auto path = std::filesystem::path(DFLASH_PROGRAMS) / program;
    std::vector<char*> argv{const_cast<char*>(path.c_str())};
    for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  REQUIRE(child > 0);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = ::read(terminal, buffer, sizeof buffer)) > 0;)
    text.append(buffer, std::size_t(n));
  ::close(terminal);
  int status = 1;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
  return text;
}

TEST_CASE("conversations become a store, a draft and its acceptance length") {
  const TrainedDraft draft;
  CHECK(mentions(draft.capture.out, "samples: 24 kept, 0 dropped, 0 failed"));
  CHECK(draft.capture.err.empty());

  const auto log = json_lines(draft.output / "log.jsonl");
  REQUIRE(log.size() == 10);
  for (std::size_t i = 0; i < log.size(); ++i) {
    CHECK(keys_of(log[i]) == std::set<std::string>{"step", "epoch", "loss", "accuracy",
                                                   "acceptance", "grad_norm", "learning_rate",
                                                   "tokens_per_second"});
    CHECK(log[i]["step"] == i + 1);
    CHECK(log[i]["epoch"] == 0);
    CHECK(log[i]["loss"] > 0);
    CHECK(log[i]["acceptance"] >= 1);
    CHECK(log[i]["grad_norm"] > 0);
    CHECK(log[i]["learning_rate"] >= 0);
    CHECK(log[i]["tokens_per_second"] > 0);
  }
  CHECK(log[9]["loss"] < log[0]["loss"]);
  CHECK(content_of(draft.output / "latest") == "step-000010\n");
  CHECK(mentions(draft.training.out, "checkpoint: " + draft.checkpoint().string()));

  const auto config = nlohmann::json::parse(content_of(draft.checkpoint() / "config.json"));
  CHECK(config["architectures"] == nlohmann::json{"DFlashDraftModel"});
  CHECK_FALSE(config.contains("auto_map"));
  CHECK(config["dtype"] == "float32");
  CHECK(config["model_type"] == "qwen3");
  CHECK(config["dflash_config"]["mask_token_id"] == 2047);
  CHECK(config["dflash_config"]["target_layer_ids"] == nlohmann::json{1, 2, 3, 4, 5});
  const auto header = safetensors_header(draft.checkpoint() / "model.safetensors");
  CHECK(header["fc.weight"]["shape"] == nlohmann::json{160, 800});
  CHECK(header["layers.1.mlp.gate_proj.weight"]["dtype"] == "F32");
  CHECK(header["__metadata__"]["format"] == "pt");

  const auto evaluation =
      succeed("evaluate", evaluate_flags(draft.checkpoint()) + Arguments{"--json"});
  CHECK(evaluation.err.empty());
  const auto result = only_object(evaluation);
  CHECK(result["identical_to_greedy"] == true);
  CHECK(result["prompts"] == 4);
  CHECK(result["acceptance_length"] >= 1);
  CHECK(result["acceptance_by_position"].size() == 7);
  CHECK(result["tokens"] > 4);
  CHECK(result["tokens"] <= 4 * 24);
  CHECK(result["target_forwards"] > 0);
  CHECK(result["tokens_per_second"] > 0);
  const auto lines = lines_of(succeed("evaluate", evaluate_flags(draft.checkpoint())).out);
  CHECK(mentions(lines.back(), "4 of 4 answers identical to plain greedy decoding"));
}

TEST_CASE("checkpoints may be in bfloat16, kept in small numbers, and started from") {
  const TrainedDraft draft;
  const auto output = draft.folder / "more";
  succeed("train_offline",
          draft.flags(output) + Arguments{"--export-dtype", "bf16", "--save-initial",
                                          "--max-checkpoints", "2", "--draft-checkpoint-path",
                                          draft.checkpoint()});
  CHECK_FALSE(std::filesystem::exists(output / "step-000000"));
  CHECK(std::filesystem::exists(output / "step-000005"));
  const auto checkpoint = output / "step-000010";
  CHECK(nlohmann::json::parse(content_of(checkpoint / "config.json"))["dtype"] == "bfloat16");
  CHECK(safetensors_header(checkpoint / "model.safetensors")["norm.weight"]["dtype"] == "BF16");
  CHECK(json_lines(output / "log.jsonl")[0]["loss"] <
        json_lines(draft.output / "log.jsonl")[0]["loss"]);
  CHECK(only_object(succeed("evaluate", evaluate_flags(checkpoint) +
                                            Arguments{"--json"}))["identical_to_greedy"] == true);
}

TEST_CASE("a draft to start from brings its config, and the log has a line at every checkpoint") {
  const TrainedDraft draft;
  const auto output = draft.folder / "more";
  const Arguments flags{"--target-model-path",
                        tiny_target,
                        "--train-hidden-states-path",
                        draft.store,
                        "--draft-checkpoint-path",
                        draft.checkpoint(),
                        "--output-dir",
                        output,
                        "--num-anchors",
                        "8",
                        "--max-steps",
                        "7",
                        "--log-interval",
                        "3",
                        "--save-interval",
                        "2",
                        "--threads",
                        "1"};
  succeed("train_offline", flags);
  const auto config = [](const std::filesystem::path& checkpoint) {
    return nlohmann::json::parse(content_of(checkpoint / "config.json"));
  };
  CHECK(config(output / "step-000007") == config(draft.checkpoint()));
  std::vector<int> steps;
  for (const auto& line : json_lines(output / "log.jsonl")) steps.push_back(line["step"]);
  CHECK(steps == std::vector<int>{2, 3, 4, 6, 7});

  const auto smaller = draft.folder / "smaller.json";
  put(smaller, content_of(tiny_draft_config));
  change_json(smaller, [](nlohmann::json& json) {
    json["num_hidden_layers"] = 1;
    json.erase("layer_types");
  });
  check_named(failure_of("train_offline", flags + Arguments{"--draft-config-path", smaller,
                                                            "--output-dir", draft.folder / "no"}),
              {draft.checkpoint().string(), "layers.1."});
}

TEST_CASE("a store in bfloat16 or fp8 trains a draft much like one in float32") {
  const TrainedDraft draft;
  const auto exact = json_lines(draft.output / "log.jsonl");
  struct Stored {
    const char *flag, *dtype;
    double error;
  };
  for (const Stored& stored :
       {Stored{"target", "BF16", 0.02}, Stored{"f8_e4m3", "F8_E4M3", 0.05}}) {
    CAPTURE(stored.flag);
    const auto store = draft.folder / stored.dtype, output = draft.folder / stored.flag;
    succeed("prepare_hidden_states",
            capture_flags(store) + TrainedDraft::more_samples + Arguments{"--dtype", stored.flag});
    CHECK(safetensors_header(store / "shard-000000.safetensors")["features"]["dtype"] ==
          stored.dtype);
    succeed("train_offline", draft.flags(output) + Arguments{"--train-hidden-states-path", store,
                                                             "--max-steps", "10"});
    const auto log = json_lines(output / "log.jsonl");
    REQUIRE(log.size() == exact.size());
    CHECK(log[0]["loss"] != exact[0]["loss"]);
    for (std::size_t i = 0; i < log.size(); ++i)
      CHECK(log[i]["loss"].get<double>() ==
            doctest::Approx(exact[i]["loss"].get<double>()).epsilon(stored.error));
  }
}

TEST_CASE("evaluation does not depend on threads, and sampling on nothing but the seed") {
  const TrainedDraft draft;
  const auto json = [&](const Arguments& more) {
    return without_speed(only_object(
        succeed("evaluate", evaluate_flags(draft.checkpoint()) + Arguments{"--json"} + more)));
  };
  CHECK(json({}) == json({"--threads", "2"}));
  const Arguments sampling{"--temperature", "0.8", "--draft-temperature", "0.8"};
  const auto sampled = json(sampling);
  CHECK(sampled == json(sampling + Arguments{"--threads", "2"}));
  CHECK_FALSE(sampled.contains("identical_to_greedy"));

  const auto answer = [&](const std::string& seed) {
    const std::string question = "What is a transcript?";
    const auto out = succeed("evaluate", evaluate_flags(draft.checkpoint()) + sampling +
                                             Arguments{"--seed", seed, "--show", question})
                         .out;
    REQUIRE(mentions(out, question));
    return out.substr(out.find(question));
  };
  const auto one = answer("1");
  CHECK(one == answer("1"));
  CHECK(one != answer("2"));
}

TEST_CASE("progress is plain lines where nobody watches, one rewritten line on a terminal") {
  const TrainedDraft draft;
  for (const Outcome* outcome : {&draft.capture, &draft.training}) {
    CHECK_FALSE(mentions(outcome->out, "\r"));
    CHECK_FALSE(mentions(outcome->out, "\033"));
  }
  CHECK(mentions(draft.capture.out, "24/24 samples"));
  CHECK(mentions(draft.capture.out, " tokens/s\n"));
  auto lines = lines_of(draft.training.out);
  REQUIRE(lines.size() == 12);
  CHECK(lines[0].starts_with("draft: "));
  CHECK(mentions(lines[0], "blocks of 8"));
  lines.erase(lines.begin());
  for (std::size_t i = 0; i < 10; ++i) {
    CHECK(lines[i].starts_with("step " + std::to_string(i + 1) + "/10  loss "));
    for (const char* part : {"  accuracy ", "  acceptance ", " tokens/s  "})
      CHECK(mentions(lines[i], part));
    CHECK(lines[i].ends_with(i < 9 ? " left" : " in all"));
  }

  const auto shown = on_a_terminal("train_offline", draft.flags(draft.folder / "watched"));
  CHECK(mentions(shown, "\r\033[Kstep 10/10  loss "));
  CHECK(log_without_speed(draft.folder / "watched") == log_without_speed(draft.output));
}

TEST_CASE("an example of a user's data learns, one of a user's attention counts") {
  const auto steps = lines_of(succeed("custom_dataset", {}).out);
  const auto loss = [](const std::string& line) {
    return std::stod(line.substr(line.find("loss ") + 5));
  };
  REQUIRE(steps.size() > 1);
  CHECK(loss(steps.back()) < 0.5 * loss(steps.front()));
  const auto counts = lines_of(succeed("custom_attention", {}).out);
  REQUIRE(counts.size() == 3);
  const auto count = [](const std::string& line) {
    const auto number = line.substr(0, line.rfind(" scores"));
    return std::stol(number.substr(number.rfind(' ')));
  };
  // Queries: 2 layers x 2 heads x 64 blocks x 4 rows; each sees its own block, half of it under a
  // causal window, and of the context at most what the window leaves.
  const long queries = 2 * 2 * 64 * 4;
  CHECK(count(counts[1]) > queries * 100);
  CHECK(count(counts[2]) > queries * 30);
  CHECK(count(counts[2]) <= queries * 36);
}

}  // namespace pipeline_test
