#include "dflash/text/conversations.hpp"

#include <doctest/doctest.h>

#include "io/temporary_folder.hpp"

namespace conversations_test {

using namespace dflash;

const std::filesystem::path tiny = std::filesystem::path(DFLASH_EXAMPLE_DATA) / "tiny-target";

struct Fixture {
  TemporaryFolder folder;
  Tokenizer tokenizer{tiny};
  Chat chat{tokenizer};
  std::filesystem::path file = folder / "data.jsonl";

  std::vector<TokenizedSample> read(const std::string& content, SampleOptions options = {}) {
    put(file, content);
    std::vector<TokenizedSample> samples;
    for_each_sample(file, chat, options,
                    [&](TokenizedSample sample) { samples.push_back(std::move(sample)); });
    return samples;
  }
  std::string complaint(const std::string& content, SampleOptions options = {}) {
    return error_of([&] { read(content, options); });
  }
};

const std::string talk =
    R"({"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]})";

TEST_CASE_FIXTURE(Fixture, "every kind of line gives the same sample") {
  const auto expected = read(talk + "\n");
  REQUIRE(expected.size() == 1);
  REQUIRE(!expected[0].tokens.empty());
  const std::string text = tokenizer.decode(expected[0].tokens);
  CHECK(text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n");
  nlohmann::json tokens = {{"input_ids", expected[0].tokens}, {"loss_mask", expected[0].loss_mask}};
  const std::string others =
      R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]})"
      "\n"
      R"({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]})"
      "\n" +
      nlohmann::json{{"text", text}}.dump() + "\n" + tokens.dump();
  const auto samples = read(others);
  REQUIRE(samples.size() == 4);
  for (const auto& sample : samples) {
    CHECK(sample.tokens == expected[0].tokens);
    CHECK(sample.loss_mask == expected[0].loss_mask);
  }
}

TEST_CASE_FIXTURE(Fixture, "a sample is called by its id, or else by its line") {
  const std::string rest = talk.substr(1) + "\n";
  const auto samples = read("{\"id\": \"a/b\", " + rest + "\n{" + rest + "{\"id\": 7, " + rest +
                            "{\"id\": null, " + rest);
  REQUIRE(samples.size() == 4);
  CHECK(samples[0].id == "a/b");
  CHECK(samples[1].id == "3");  // the blank line counts
  CHECK(samples[2].id == "7");
  CHECK(samples[3].id == "5");
}

TEST_CASE_FIXTURE(Fixture, "lines may end in any way, and the file may begin with a mark") {
  CHECK(read("\xEF\xBB\xBF" + talk + "\r\n\r\n  \n" + talk).size() == 2);
  CHECK(read("").empty());
  CHECK(read("\n\n").empty());
}

TEST_CASE_FIXTURE(Fixture, "a conversation without messages is a sample without tokens") {
  const auto samples = read(R"({"conversations": []})"
                            "\n"
                            R"({"conversations": null})");
  REQUIRE(samples.size() == 2);
  CHECK(samples[0].tokens.empty());
  CHECK(samples[1].tokens.empty());
}

TEST_CASE_FIXTURE(Fixture, "samples are cut at the limit, the last turn may be learned alone") {
  SampleOptions options;
  options.max_length = 5;
  const std::string tokens =
      R"({"input_ids": [1,2,3,4,5,6,7], "loss_mask": [1,0,1,true,false,1,1]})";
  for (const auto& sample : read(talk + "\n" + tokens, options)) {
    CHECK(sample.tokens.size() == 5);
    CHECK(sample.loss_mask.size() == 5);
  }
  CHECK(read(tokens)[0].loss_mask == std::vector<std::uint8_t>{1, 0, 1, 1, 0, 1, 1});
}

TEST_CASE_FIXTURE(Fixture, "preformatted text is read where it is asked for") {
  SampleOptions options;
  options.is_preformatted = true;
  const auto samples =
      read(R"({"text": "<|im_start|>assistant\nYes", "conversations": 3})", options);
  REQUIRE(samples.size() == 1);
  CHECK(tokenizer.decode(samples[0].tokens) == "<|im_start|>assistant\nYes");
  CHECK(mentions(complaint(talk, options), "has no field \"text\""));
}

TEST_CASE_FIXTURE(Fixture, "a broken line is told by file and line") {
  const auto second = [&](const std::string& line) {
    const std::string text = complaint(talk + "\n" + line + "\n" + talk);
    CHECK(text.starts_with(file.string() + ", line 2: "));
    return text;
  };
  CHECK(mentions(second("{\"conversations\": [{"), "not valid JSON"));
  CHECK(mentions(second("not JSON"), "not valid JSON at character 2"));
  CHECK(mentions(second("{\"text\": \"\xff\"}"), "not valid JSON"));
  CHECK(mentions(second("[1, 2]"), "no JSON object"));
  CHECK(mentions(second("{\"question\": 1}"), "neither"));
  CHECK(mentions(second("{\"conversations\": \"x\"}"), "not a list"));
  CHECK(mentions(second("{\"conversations\": [3]}"), "no object"));
  CHECK(mentions(second("{\"text\": 3}"), "not a string"));
  CHECK(mentions(second("{\"input_ids\": [1, 2]}"), "loss_mask"));
  CHECK(mentions(second("{\"input_ids\": 3, \"loss_mask\": []}"), "input_ids"));
  CHECK(mentions(second("{\"input_ids\": [1, 2], \"loss_mask\": [1]}"), "2 \"input_ids\" but 1"));
  CHECK(mentions(second("{\"input_ids\": [-1], \"loss_mask\": [1]}"), "[0] is -1"));
  CHECK(mentions(second("{\"input_ids\": [3000000000], \"loss_mask\": [1]}"), "3000000000"));
  CHECK(mentions(second("{\"input_ids\": [1.5], \"loss_mask\": [1]}"), "1.5"));
  CHECK(mentions(second("{\"input_ids\": [1], \"loss_mask\": [2]}"), "0 or 1"));
  CHECK(mentions(second("{\"input_ids\": [1e999], \"loss_mask\": [1]}"), "overflows"));
  CHECK(mentions(second("{\"conversations\": [{\"role\": \"user\", \"content\": [1]}]}"),
                 "chat template of"));
  std::string deep(100'000, '[');
  CHECK(mentions(second("{\"messages\": [], \"x\": " + deep + std::string(100'000, ']') + "}"),
                 "nested too deeply"));
  CHECK(
      mentions(error_of([&] { SampleReader reader(folder / "absent", chat, {}); }), "cannot open"));
  CHECK(mentions(error_of([&] { SampleReader reader(folder.path(), chat, {}); }), "folder"));
}

TEST_CASE_FIXTURE(Fixture, "the line behind one that is too long follows; a file that fails ends") {
  put(file, "");
  std::filesystem::resize_file(file, LineReader::longest + 1);
  std::ofstream(file, std::ios::app) << "\nnext\n";
  LineReader lines(file);
  std::string line;
  CHECK(error_of([&] { lines.next(line); }) == file.string() + ", line 1 is longer than 256 MiB");
  CHECK(lines.next(line));
  CHECK(line == "next");
  CHECK(lines.number() == 2);
  CHECK(!lines.next(line));
  LineReader memory("/proc/self/mem");  // its first page is never there
  CHECK_THROWS_AS(memory.next(line), ReadError);
}

TEST_CASE_FIXTURE(Fixture, "tools and other fields of a line reach the tokenizer's template") {
  put(file, R"({"id": "x", "conversations": [], "tools": "[{\"name\": \"f\"}]", "mood": "good"})");
  ConversationReader reader(file);
  const auto row = reader.next();
  REQUIRE(row);
  CHECK(jinja::json_text(row->conversation.tools) == "[{\"name\": \"f\"}]");
  CHECK(row->conversation.variables.find("mood")->string() == "good");
  CHECK(!row->conversation.variables.contains("id"));
  CHECK(!reader.next());
}

TEST_CASE("the training conversations of the tiny target are all usable, whichever template") {
  const Tokenizer tokenizer(tiny);
  const Chat own(tokenizer), named = chat_for(tokenizer, "lfm");
  SampleOptions options;
  options.max_length = 256;
  SampleReader a(tiny / "prompts-train.jsonl", own, options),
      b(tiny / "prompts-train.jsonl", named, options);
  int samples = 0, with_pair = 0, different = 0;
  while (const auto x = a.next()) {
    const auto y = b.next();
    REQUIRE(y);
    ++samples;
    different += x->tokens != y->tokens || x->loss_mask != y->loss_mask || x->id != y->id;
    bool pair = false;
    for (std::size_t i = 1; i < x->tokens.size(); ++i)
      pair = pair || (x->loss_mask[i - 1] && x->loss_mask[i]);
    with_pair += pair;
  }
  CHECK(samples == 1991);
  CHECK(with_pair == 1991);
  CHECK(different == 0);
}

}  // namespace conversations_test
