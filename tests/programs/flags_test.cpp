// Flags of the programs.

#include <map>
#include <sstream>

#include "programs/programs.hpp"

namespace flags_test {

TEST_CASE("every program lists its flags") {
  struct Case {
    std::string program;
    Arguments flags;
  };
  const Arguments training{"--target-model-path",
                           "--draft-config-path",
                           "--output-dir",
                           "--block-size",
                           "--num-draft-layers",
                           "--num-anchors",
                           "--loss-decay-gamma",
                           "--loss-type",
                           "--learning-rate",
                           "--warmup-ratio",
                           "--max-grad-norm",
                           "--num-epochs",
                           "--max-steps",
                           "--batch-size",
                           "--accumulation-steps",
                           "--log-interval",
                           "--save-interval",
                           "--seed",
                           "--resume",
                           "--plan",
                           "--ranks",
                           "--dist-timeout",
                           "--sp-ulysses-size",
                           "--sp-ring-size",
                           "--tp-size",
                           "--head-precision"};
  Arguments offline = training, online = training;
  offline.push_back("--train-hidden-states-path");
  for (const char* flag :
       {"--train-data-path", "--max-length", "--chat-template", "--sample-filter"})
    online.push_back(flag);
  const Case cases[] = {
      {"prepare_hidden_states",
       {"--target-model-path", "--draft-config-path", "--data-path", "--chat-template",
        "--output-path", "--model-type", "--sample-filter", "--block-size", "--num-draft-layers",
        "--max-length", "--batch-size", "--dtype", "--ranks", "--tp-size", "--dist-timeout"}},
      {"import_hidden_states",
       {"--hidden-states-path", "--target-model-path", "--target-layer-ids", "--output-path"}},
      {"train_offline", offline},
      {"train_online", online},
      {"evaluate",
       {"--target-model-path", "--draft-model-path", "--data-path", "--max-new-tokens", "--json",
        "--temperature", "--seed"}},
      {"custom_dataset", {}},
      {"custom_attention", {}}};
  for (const Case& c : cases) {
    CAPTURE(c.program);
    const auto help = succeed(c.program, {"--help"});
    CHECK(help.err.empty());
    CHECK(mentions(help.out, "Usage: " + c.program + " [OPTIONS]"));
    for (const std::string& flag : c.flags) CHECK_MESSAGE(mentions(help.out, flag + " "), flag);
    // Each is explained: from column 30 on, on its own line or on the next.
    const auto lines = lines_of(help.out);
    for (std::size_t i = 0; i < lines.size(); ++i)
      if (lines[i].starts_with("  -"))
        CHECK_MESSAGE(((lines[i].size() > 30 && lines[i][29] == ' ') ||
                       (i + 1 < lines.size() && lines[i + 1].starts_with(std::string(30, ' ')))),
                      lines[i]);
    CHECK(failure_of(c.program, {"--no-such-flag"}).ends_with("(--help lists the flags)"));
  }
}

TEST_CASE("commands in the documents use flags that their programs have") {
  const auto root = std::filesystem::path(DFLASH_EXAMPLE_DATA).parent_path().parent_path();
  std::vector<std::filesystem::path> documents{root / "README.md"};
  for (const auto& entry : std::filesystem::directory_iterator(root / "docs"))
    if (entry.path().extension() == ".md") documents.push_back(entry.path());
  std::map<std::string, std::string> help;
  int checked = 0;
  for (const auto& document : documents) {
    CAPTURE(document.string());
    bool shell = false, continued = false;
    std::string program;
    for (const std::string& line : lines_of(content_of(document))) {
      if (line.starts_with("```")) shell = line == "```sh";
      if (!shell) continue;
      if (!continued) program.clear();
      std::istringstream words(line);
      for (std::string word; words >> word && word != "#";) {
        std::string name = word.ends_with("_mpi") ? word.substr(0, word.size() - 4) : word;
        name = name.substr(name.rfind('/') + 1);
        if (name == "prepare_hidden_states" || name == "train_offline" || name == "train_online" ||
            name == "evaluate") {
          program = name;
          if (help[program].empty()) help[program] = succeed(program, {"--help"}).out;
        } else if (!program.empty() && word.starts_with("--")) {
          CHECK_MESSAGE(mentions(help[program], word + " "), program, " has no ", word);
          ++checked;
        }
      }
      continued = line.ends_with("\\");
    }
  }
  CHECK(checked > 30);
}

TEST_CASE("wrong flags are named in one sentence") {
  const TemporaryFolder folder;
  const auto capture = capture_flags(folder / "store");
  const auto online = train_flags(folder / "draft") +
                      Arguments{"--train-data-path", tiny_prompts, "--num-samples", "4"};
  const Arguments evaluation{"--target-model-path", tiny_target,   "--draft-model-path",
                             folder / "d",          "--data-path", tiny_prompts};
  struct Case {
    std::string program;
    Arguments flags;
    std::vector<std::string> named;
  };
  const Case cases[] = {
      {"train_offline", train_flags(folder / "draft"), {"--train-hidden-states-path is required"}},
      {"prepare_hidden_states", {"--data-path", "x"}, {"--target-model-path is required"}},
      {"prepare_hidden_states",
       capture + Arguments{"--frobnicate", "1", "--twice"},
       {"--frobnicate is not a flag"}},
      {"prepare_hidden_states",
       capture + Arguments{"--model-type", "medusa"},
       {"--model-type", "medusa"}},
      {"prepare_hidden_states",
       capture + Arguments{"--sample-filter", "best"},
       {"--sample-filter", "best"}},
      {"prepare_hidden_states", capture + Arguments{"--dtype", "f8"}, {"--dtype", "f8"}},
      {"prepare_hidden_states", capture + Arguments{"--max-length", "0"}, {"--max-length", "0"}},
      {"prepare_hidden_states",
       capture + Arguments{"--num-samples", "-1"},
       {"--num-samples", "-1 is not a number from 0 on"}},
      {"prepare_hidden_states", capture + Arguments{"--chat-template", "nobody's"}, {"nobody's"}},
      {"train_offline",
       train_flags(folder / "draft") +
           Arguments{"--train-hidden-states-path", folder / "store", "--lm-head-key", "head"},
       {"--lm-head-key head", "tie_word_embeddings"}},
      {"train_online", online + Arguments{"--embedding-key", "table"}, {"--embedding-key"}},
      {"train_online", online + Arguments{"--block-size", "1"}, {"--block-size"}},
      {"train_online", online + Arguments{"--batch-size", "many"}, {"--batch-size", "many"}},
      {"train_online",
       online + Arguments{"--num-anchors", "0"},
       {"--num-anchors", "0 is not a number above 0"}},
      {"train_online",
       online + Arguments{"--num-draft-layers", "3"},
       {"--num-draft-layers is 3", tiny_draft_config}},
      {"train_online", online + Arguments{"--max-steps", "-3"}, {"--max-steps", "-3"}},
      {"train_online", online + Arguments{"--loss-type", "hinge"}, {"--loss-type", "hinge"}},
      {"train_online",
       online + Arguments{"--dpace-alpha", "2"},
       {"--dpace-alpha", "2 is not a number from 0 to 1"}},
      {"train_online", online + Arguments{"--lr-scheduler", "steps"}, {"--lr-scheduler", "steps"}},
      {"train_online", online + Arguments{"--anchor-rule", "any"}, {"--anchor-rule", "any"}},
      {"train_online", online + Arguments{"--learning-rate", "-1"}, {"--learning-rate", "-1"}},
      {"train_online",
       online + Arguments{"--warmup-ratio", "2"},
       {"--warmup-ratio", "2 is not a number from 0 to 1"}},
      {"train_online", online + Arguments{"--max-grad-norm", "-1"}, {"--max-grad-norm", "-1"}},
      {"train_online", online + Arguments{"--export-dtype", "f16"}, {"--export-dtype", "f16"}},
      {"train_online",
       online + Arguments{"--head-precision", "fp8"},
       {"--head-precision", "fp8 takes a GPU"}},
      {"train_online",
       online + Arguments{"--mask-token-id", "2048"},
       {"--mask-token-id 2048", "2048"}},
      {"train_online", online + Arguments{"--mask-token-id", "-1"}, {"--mask-token-id", "-1"}},
      {"train_online",
       online + Arguments{"--mask-token-id", "4294967297"},
       {"--mask-token-id", "4294967297"}},
      {"evaluate", evaluation + Arguments{"--json", "--show", "what?"}, {"--json", "--show"}},
      {"evaluate", evaluation + Arguments{"--temperature", "-1"}, {"--temperature", "-1"}},
      {"evaluate", evaluation + Arguments{"--max-new-tokens", "0"}, {"--max-new-tokens", "0"}},
  };
  for (const Case& c : cases) {
    const std::string why = failure_of(c.program, c.flags);
    for (const std::string& name : c.named) CHECK_MESSAGE(mentions(why, name), why);
  }
  CHECK_FALSE(std::filesystem::exists(folder / "store"));
}

}  // namespace flags_test
