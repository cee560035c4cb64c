// Drafts as others publish them, evaluated by the program: the reference's own runs.

#include <numeric>

#include "dflash/io/safetensors.hpp"
#include "programs/programs.hpp"

namespace published_drafts_test {

const std::filesystem::path golden = std::filesystem::path(DFLASH_TEST_DATA) / "golden";

char letter(std::int64_t token) { return char('0' + token); }

/// A copy of a target without text, with a tokenizer that has a letter for each of its tokens.
void copy_with_letters(const std::filesystem::path& from, const std::filesystem::path& to) {
  copy_folder(from, to);
  const auto config = nlohmann::json::parse(content_of(to / "config.json"));
  nlohmann::json vocabulary;
  for (int token = 0; token < config["vocab_size"]; ++token)
    vocabulary[std::string(1, letter(token))] = token;
  const nlohmann::json bytes{{"type", "ByteLevel"},
                             {"add_prefix_space", false},
                             {"trim_offsets", true},
                             {"use_regex", false}};
  const nlohmann::json tokenizer{
      {"version", "1.0"},
      {"added_tokens", nlohmann::json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", bytes},
      {"post_processor", nullptr},
      {"decoder", bytes},
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", nlohmann::json::array()}}}};
  put(to / "tokenizer.json", tokenizer.dump());
  // The marks are for the program, which asks where an assistant's turn begins and ends.
  put(to / "tokenizer_config.json",
      nlohmann::json{{"chat_template",
                      "{% for m in messages %}{% if m['role'] == 'assistant' %}<{{ m['content'] }}>"
                      "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
                      "{% if add_generation_prompt %}{{ opening | default('<') }}{% endif %}"}}
          .dump());
}

TEST_CASE("published drafts are evaluated as the reference does") {
  int runs = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden)) {
    const auto name = entry.path().filename().string();
    if (!name.starts_with("generate_") || !name.ends_with(".json")) continue;
    const auto reference = nlohmann::json::parse(content_of(entry.path()));
    const dflash::SafetensorsFile tensors(
        std::filesystem::path(entry.path()).replace_extension("safetensors"));
    const TemporaryFolder folder;
    const auto target = folder / "target";
    copy_with_letters(golden / reference["target_dir"].get<std::string>(), target);
    for (const auto& run : reference["runs"]) {
      const int number = run["index"].get<int>();
      const std::string index = (number < 10 ? "0" : "") + std::to_string(number);
      CAPTURE(name);
      CAPTURE(index);
      put(target / "generation_config.json",
          nlohmann::json{{"eos_token_id", run["stop_token_ids"]}}.dump());
      const auto prompt_tokens = tensors.read<std::int64_t>(index + ".prompt");
      const auto output = tensors.read<std::int64_t>(index + ".output");
      std::string prompt;
      for (const std::int64_t token : prompt_tokens) prompt += letter(token);
      const nlohmann::json message{{"role", "user"}, {"content", prompt}};
      put(folder / "prompt.jsonl",
          nlohmann::json{{"conversations", nlohmann::json::array({message})}, {"opening", ""}}
                  .dump() +
              "\n");
      const auto outcome =
          succeed("evaluate",
                  {"--target-model-path", target, "--draft-model-path",
                   golden / reference["draft_dir"].get<std::string>(), "--data-path",
                   folder / "prompt.jsonl", "--max-new-tokens",
                   std::to_string(run["max_new_tokens"].get<int>()), "--json", "--threads", "1"});
      const auto result = nlohmann::json::parse(outcome.out);
      const auto accept = run["accept"].get<std::vector<int>>();
      std::vector<int> histogram(result["acceptance_histogram"].size());
      for (const int taken : accept) ++histogram.at(std::size_t(taken) - 1);
      CHECK(result["acceptance_histogram"] == histogram);
      CHECK(result["target_forwards"] == accept.size());
      CHECK(result["acceptance_length"].get<double>() ==
            doctest::Approx(std::accumulate(accept.begin(), accept.end(), 0.0) /
                            double(accept.size())));
      CHECK(result["tokens"] == output.size() - prompt_tokens.size());
      CHECK(result["identical_to_greedy"] == true);
      ++runs;
    }
  }
  CHECK(runs > 0);
}

}  // namespace published_drafts_test
