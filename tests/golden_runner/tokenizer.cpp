// Tokenizers: ids, decoded text, pieces, normalisation and character classes.

#include "dflash/text/tokenizer.hpp"

#include <deque>
#include <map>
#include <set>

#include "dflash/io/json_file.hpp"
#include "dflash/text/pattern.hpp"
#include "dflash/text/pre_tokenizer.hpp"
#include "dflash/text/unicode.hpp"
#include "golden.hpp"

using namespace dflash;
using Json = nlohmann::json;

namespace golden {
namespace {

std::string label(const std::string& tokenizer, const Json& text) {
  return tokenizer + " " + text.dump(-1, ' ', true);
}

/// The field of a case for one tokenizer, or the fallback where that changes nothing.
std::string text_for(const Json& item, const char* field, const std::string& tokenizer,
                     const std::string& fallback) {
  if (!item.contains(field) || !item[field].contains(tokenizer)) return fallback;
  return item[field][tokenizer];
}

void run_cases(const std::filesystem::path& folder, Report& report) {
  const Json json = read_json(folder / "cases.json");
  for (const auto& [name, facts] : json.at("tokenizers").items()) {
    if (!std::filesystem::exists(folder / name / "tokenizer.json")) {
      report.skip(name + ": its vocabulary is not here");
      continue;
    }
    const Tokenizer tokenizer(folder / name);
    report.expect(tokenizer.size() == facts.at("vocab").get<index_t>(), name + ": size");
    for (const Json& item : json.at("cases")) {
      if (!item.at("ids").contains(name)) continue;
      const std::string text = item.at("text");
      const std::vector<std::int32_t> ids = item["ids"][name];
      report.equal(label(name, text), tokenizer.encode(text), ids);
      const std::string decoded = text_for(item, "decoded", name, text);
      report.expect(tokenizer.decode(ids) == decoded, label(name, text) + ": decoded");
      report.expect(
          tokenizer.decode(ids, true) == text_for(item, "decoded_without_special", name, decoded),
          label(name, text) + ": decoded without special tokens");
    }
    for (const Json& item : json.value("with_special", Json::array()))
      if (item.at("tokenizer") == name)
        report.equal(label(name, item.at("text")) + " with special tokens",
                     tokenizer.encode(item.at("text").get<std::string>(), true),
                     item.at("ids").get<std::vector<std::int32_t>>());
  }
}

void run_pieces(const std::filesystem::path& file, Report& report) {
  const Json json = read_json(file);
  std::map<std::string, PreTokenizer> splitters;
  const auto step = [](const std::string& pattern) {
    PreTokenizerStep one;
    one.pattern.emplace(pattern, "pieces.json");
    return one;
  };
  for (const auto& [name, pattern] : json.at("patterns").items()) {
    std::vector<PreTokenizerStep> steps;
    if (name == "digits_gpt2") {
      steps.push_back(step(R"(\p{N})"));
      steps.push_back(step(json["patterns"].at("gpt2")));
    } else {
      steps.push_back(step(pattern));
    }
    splitters.emplace(name, PreTokenizer(std::move(steps)));
  }
  PatternScratch scratch;
  for (const Json& item : json.at("cases")) {
    const std::string text = item.at("text");
    for (const auto& [name, expected] : item.at("pieces").items()) {
      std::deque<std::string> copies;
      std::vector<Piece> pieces;
      splitters.at(name).split(text, scratch, copies, pieces);
      std::vector<std::string> found;
      for (const Piece& piece : pieces) found.emplace_back(piece.text);
      report.equal(label(name, text), found, expected.get<std::vector<std::string>>());
    }
  }
}

void run_nfc(const std::filesystem::path& file, Report& report) {
  const Json json = read_json(file);
  for (const Json& item : json.at("cases"))
    report.expect(
        normalized(item.at(0).get<std::string>(), NormalForm::nfc) == item.at(1).get<std::string>(),
        label("NFC of", item.at(0)));
}

void run_unicode_ranges(const std::filesystem::path& file, Report& report) {
  const Json json = read_json(file);
  std::string text;
  for (char32_t c = 0; c <= 0x10FFFF; ++c)
    if (c < 0xD800 || c > 0xDFFF) append_utf8(text, c);
  PatternScratch scratch;
  const std::map<std::string, std::string> patterns = {
      {"letter", R"(\p{L})"}, {"number", R"(\p{N})"}, {"mark", R"(\p{M})"}, {"space", R"(\s)"}};
  for (const auto& [name, ranges] : json.items()) {
    if (!patterns.contains(name)) continue;
    std::vector<std::uint32_t> expected, found;
    for (const Json& range : ranges)
      for (std::uint32_t c = range.at(0); c <= range.at(1).get<std::uint32_t>(); ++c)
        expected.push_back(c);
    Pattern(patterns.at(name), name)
        .for_each_match(text, scratch, [&](std::size_t begin, std::size_t) {
          found.push_back(code_point_at(text, begin).value);
        });
    report.equal("characters of class " + name, found, expected);
  }
}

}  // namespace

void run_tokenizer(const std::filesystem::path& folder, Report& report) {
  const auto run = [&](const char* name, auto&& body) {
    if (std::filesystem::exists(folder / name)) body(folder / name);
  };
  run("cases.json", [&](const auto&) { run_cases(folder, report); });
  run("pieces.json", [&](const auto& file) { run_pieces(file, report); });
  run("nfc.json", [&](const auto& file) { run_nfc(file, report); });
  run("unicode_ranges.json", [&](const auto& file) { run_unicode_ranges(file, report); });
}

}  // namespace golden
