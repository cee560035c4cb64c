#include "dflash/text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "io/temporary_folder.hpp"

namespace tokenizer_test {

using namespace dflash;
using Json = nlohmann::json;
using Ids = std::vector<std::int32_t>;

const std::filesystem::path data = std::filesystem::path(DFLASH_TEST_DATA) / "golden/tokenizer";

/// A tokenizer of all bytes and a few merges; ids 0-255 are the bytes.
Json small_tokenizer() {
  Json vocabulary = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    std::string name;
    append_utf8(name, ByteAlphabet::get().character(std::uint8_t(byte)));
    vocabulary[name] = byte;
  }
  vocabulary["ab"] = 256;
  vocabulary["bc"] = 257;
  vocabulary["abc"] = 258;
  vocabulary["\u0120a"] = 259;
  return {
      {"model",
       {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", {"a b", "b c", "ab c", "\u0120 a"}}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"added_tokens",
       {{{"id", 260}, {"content", "<end>"}, {"special", true}, {"normalized", false}}}}};
}

struct Fixture {
  TemporaryFolder folder;
  Json json = small_tokenizer();

  Tokenizer load() const {
    put(folder / "tokenizer.json", json.dump());
    return Tokenizer(folder.path());
  }
  std::string complaint() const {
    return error_of([&] { load(); });
  }
  std::string file() const { return (folder / "tokenizer.json").string(); }
};

TEST_CASE_FIXTURE(Fixture, "pairs are merged in order of rank, not of length or id") {
  const Tokenizer tokenizer = load();
  CHECK(tokenizer.encode("abc") == Ids{258});
  CHECK(tokenizer.encode("bc") == Ids{257});
  CHECK(tokenizer.encode(" ab") == Ids{' ', 256});  // "a b" ranks before "Ga"
  CHECK(tokenizer.encode(" a") == Ids{259});
  CHECK(tokenizer.encode("").empty());
  CHECK(tokenizer.size() == 261);
  CHECK(tokenizer.id_limit() == 261);
}

TEST_CASE_FIXTURE(Fixture, "added tokens are found in the text and can be left out again") {
  const Tokenizer tokenizer = load();
  CHECK(tokenizer.encode("ab<end>c") == Ids{256, 260, 'c'});
  CHECK(tokenizer.decode({256, 260, 'c'}) == "ab<end>c");
  CHECK(tokenizer.decode({256, 260, 'c'}, true) == "abc");
  CHECK(tokenizer.token_id("<end>") == 260);
  CHECK(!tokenizer.token_id("<absent>"));
  CHECK(tokenizer.is_special(260));
}

TEST_CASE_FIXTURE(Fixture,
                  "bytes that make no character decode to U+FFFD, unknown ids to nothing") {
  const Tokenizer tokenizer = load();
  CHECK(tokenizer.decode({0xE2, 0x82, 'z'}) == "\uFFFDz");
  CHECK(tokenizer.decode({0xE2, 0x82, 0xAC}) == "\u20AC");
  CHECK(tokenizer.decode({'a', 9999, -1, 'b'}) == "ab");
  CHECK(tokenizer.encode("\xff") == tokenizer.encode("\uFFFD"));
}

TEST_CASE_FIXTURE(Fixture, "a limit cuts the tokens") {
  const Tokenizer tokenizer = load();
  CHECK(tokenizer.encode("abc abc", false, 1) == Ids{258});
  CHECK(tokenizer.encode("abc<end>abc", false, 2) == Ids{258, 260});
  CHECK(tokenizer.encode("abc", false, 0).empty());
}

TEST_CASE_FIXTURE(Fixture, "bytes without a token vanish, or become the unknown token") {
  json["model"]["vocab"].erase("z");
  CHECK(load().encode("azb") == Ids{256});
  json["model"]["unk_token"] = "x";
  CHECK(load().encode("azzb") == Ids{'a', 'x', 'x', 'b'});
  json["model"]["fuse_unk"] = true;
  CHECK(load().encode("azzb") == Ids{'a', 'x', 'b'});
}

TEST_CASE_FIXTURE(Fixture, "merges may be pairs, and whole entries may win") {
  json["model"]["merges"] =
      Json::parse(R"([["a", "b"], ["b", "c"], ["ab", "c"], ["\u0120", "a"]])");
  json["model"]["vocab"]["hello"] = 270;
  CHECK(load().encode("abc") == Ids{258});
  CHECK(load().encode("hello") == Ids{'h', 'e', 'l', 'l', 'o'});
  json["model"]["ignore_merges"] = true;
  CHECK(load().encode("hello") == Ids{270});
  CHECK(load().encode("hello abc") == Ids{270, ' ', 258});
}

TEST_CASE_FIXTURE(Fixture, "special tokens go around a text only when asked for") {
  json["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {{{"SpecialToken", {{"id", "<end>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
      {"special_tokens", {{"<end>", {{"ids", {260}}}}}}};
  const Tokenizer tokenizer = load();
  CHECK(tokenizer.encode("a") == Ids{'a'});
  CHECK(tokenizer.encode("a", true) == Ids{260, 'a'});
  CHECK(tokenizer.special_token("bos_token") == "<end>");  // nothing else tells
}

TEST_CASE_FIXTURE(Fixture, "the files beside tokenizer.json tell roles and templates") {
  put(folder / "tokenizer_config.json",
      R"({"eos_token": "<end>", "bos_token": null, "pad_token": {"content": "<pad>"},
          "chat_template": [{"name": "default", "template": "D"},
                            {"name": "tool_use", "template": "T"}]})");
  const Tokenizer tokenizer = load();
  CHECK(tokenizer.special_token("eos_token") == "<end>");
  CHECK(tokenizer.special_token_id("eos_token") == 260);
  CHECK(!tokenizer.special_token("bos_token"));
  CHECK(tokenizer.special_token("pad_token") == "<pad>");
  CHECK(!tokenizer.special_token_id("pad_token"));
  CHECK(tokenizer.definition().chat_templates.at("default") == "D");
  CHECK(tokenizer.definition().chat_templates.at("tool_use") == "T");
  put(folder / "chat_template.jinja", "newer");
  CHECK(load().definition().chat_templates.at("default") == "newer");
}

TEST_CASE("tokens know the bytes they stand for") {
  const Tokenizer tokenizer(data / "mini_nfc");
  const std::string text = "He e\u0301<|im_start|>\u4f60 a\u0323\u0302!";
  std::size_t done = 0;
  for (const auto& token : tokenizer.encode_with_places(text)) {
    CHECK(token.bytes.begin >= 0);
    CHECK(token.bytes.begin < token.bytes.end);
    CHECK(token.bytes.end <= index_t(text.size()));
    CHECK(std::size_t(token.bytes.begin) <= done);  // nothing is left out
    done = std::max(done, std::size_t(token.bytes.end));
  }
  CHECK(done == text.size());
  const auto placed = tokenizer.encode_with_places("a<|im_end|>b");
  REQUIRE(placed.size() == 3);
  CHECK(placed[1].bytes.begin == 1);
  CHECK(placed[1].bytes.end == 11);
}

TEST_CASE("a long piece takes time in proportion to its length") {
  const Tokenizer tokenizer(data / "smollm2");
  const auto seconds = [&](std::size_t size) {
    const std::string text(size, 'a');
    const auto start = std::chrono::steady_clock::now();
    CHECK(tokenizer.encode(text).size() > size / 16);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  seconds(1000);
  // Quadratic time would make the second 100 times the first.
  CHECK(seconds(1'000'000) < 40 * std::max(seconds(100'000), 1e-3));
}

TEST_CASE("several threads may encode at once") {
  const Tokenizer tokenizer(data / "smollm2");
  const std::string text = "The quick brown fox jumps over 13 lazy dogs. caf\u00e9 \u4f60\u597d!\n";
  const Ids expected = tokenizer.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) wrong[std::size_t(t)] += tokenizer.encode(text) != expected;
    });
  for (auto& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4, 0));
}

TEST_CASE_FIXTURE(Fixture, "files that hold no usable tokenizer are told by file and field") {
  const Json good = json;
  const auto with = [&](auto&& change) {
    json = good;
    change(json);
    const std::string text = complaint();
    CHECK(mentions(text, file()));
    return text;
  };
  CHECK(mentions(with([](Json& j) { j["model"]["type"] = "WordPiece"; }), "\"model.type\""));
  CHECK(mentions(with([](Json& j) { j["model"]["type"] = "WordPiece"; }), "\"WordPiece\""));
  CHECK(mentions(with([](Json& j) { j.erase("model"); }), "\"model\""));
  CHECK(mentions(with([](Json& j) { j["model"]["vocab"] = 3; }), "\"model.vocab\""));
  CHECK(mentions(with([](Json& j) { j["model"]["vocab"]["a"] = -1; }), "negative"));
  CHECK(mentions(with([](Json& j) { j["model"]["vocab"]["a"] = 1e18; }), "\"model.vocab\""));
  CHECK(mentions(with([](Json& j) { j["model"]["vocab"]["a"] = 98; }), "id 98 to two tokens"));
  CHECK(mentions(with([](Json& j) { j["model"]["merges"] = "a b"; }), "\"model.merges\""));
  CHECK(mentions(with([](Json& j) { j["model"]["merges"][1] = "abc"; }), "\"model.merges[1]\""));
  CHECK(mentions(with([](Json& j) { j["model"]["merges"][1] = {"a"}; }), "\"model.merges[1]\""));
  CHECK(mentions(with([](Json& j) { j["model"]["merges"][1] = "a q"; }), "\"aq\""));
  CHECK(mentions(with([](Json& j) { j["model"]["unk_token"] = "<u>"; }), "model.unk_token"));
  CHECK(mentions(with([](Json& j) { j["model"]["byte_fallback"] = true; }), "byte_fallback"));
  CHECK(mentions(with([](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }), "suffix"));
  CHECK(mentions(with([](Json& j) {
                   j["normalizer"] = {{"type", "Lowercase"}};
                 }),
                 "\"normalizer.type\""));
  CHECK(mentions(with([](Json& j) {
                   j["pre_tokenizer"] = {{"type", "Metaspace"}};
                 }),
                 "\"pre_tokenizer.type\""));
  CHECK(mentions(with([](Json& j) { j.erase("pre_tokenizer"); }), "ByteLevel"));
  CHECK(mentions(with([](Json& j) {
                   j["pre_tokenizer"] = {
                       {"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}};
                 }),
                 "regular expression"));
  CHECK(mentions(with([](Json& j) {
                   j["post_processor"] = {{"type", "Bert"}};
                 }),
                 "\"post_processor.type\""));
  CHECK(
      mentions(with([](Json& j) { j["added_tokens"][0].erase("id"); }), "\"added_tokens[0].id\""));
  CHECK(mentions(with([](Json& j) { j["added_tokens"][0]["content"] = 5; }),
                 "\"added_tokens[0].content\""));
  CHECK(mentions(with([](Json& j) {
                   Json inner = j["pre_tokenizer"];
                   for (int i = 0; i < 50; ++i)
                     inner = {{"type", "Sequence"}, {"pretokenizers", {inner}}};
                   j["pre_tokenizer"] = inner;
                 }),
                 "Sequence"));
  json = good;
  CHECK(complaint().empty());
  put(folder / "tokenizer.json", json.dump().substr(0, 500));
  CHECK(mentions(error_of([&] { Tokenizer tokenizer(folder.path()); }), "not valid JSON"));
  CHECK(mentions(error_of([&] { Tokenizer tokenizer(folder / "absent"); }), "cannot open"));
}

TEST_CASE_FIXTURE(Fixture, "a pattern that cannot come to an end is an error, not a hang") {
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "(a+)+$"}}}, {"behavior", "Isolated"}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const Tokenizer tokenizer = load();
  CHECK(mentions(error_of([&] { tokenizer.encode(std::string(60, 'a').append("b")); }), "gave up"));
}

}  // namespace tokenizer_test
