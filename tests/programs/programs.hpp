#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "programs/process.hpp"

using Arguments = std::vector<std::string>;

inline const std::filesystem::path tiny_target =
    std::filesystem::path(DFLASH_EXAMPLE_DATA) / "tiny-target";
inline const std::string tiny_draft_config = tiny_target / "draft-config.json";
inline const std::string tiny_prompts = tiny_target / "prompts-train.jsonl";

/// Flags and more flags, which replace those of the same name.
inline Arguments operator+(const Arguments& flags, const Arguments& more) {
  Arguments all;
  bool replaced = false;
  for (const std::string& word : flags) {
    if (word.starts_with("--")) replaced = std::find(more.begin(), more.end(), word) != more.end();
    if (!replaced) all.push_back(word);
  }
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

/// Flags and the words of a text.
inline Arguments operator+(Arguments flags, const std::string& more) {
  std::istringstream words(more);
  for (std::string word; words >> word;) flags.push_back(word);
  return flags;
}

/// Runs a program that is expected to succeed.
inline Outcome succeed(const std::string& program, const Arguments& arguments) {
  const Outcome outcome = run(program, arguments);
  INFO(program, " says ", outcome.err);
  REQUIRE(outcome.status == 0);
  return outcome;
}

/// Runs a program that is expected to fail, and returns the one line that it says why in.
inline std::string failure_of(const std::string& program, const Arguments& arguments) {
  const Outcome outcome = run(program, arguments);
  INFO(program, " says ", outcome.err);
  CHECK(outcome.status > 0);
  CHECK(outcome.status < 128);
  REQUIRE(outcome.err.starts_with(program + ": "));
  CHECK(outcome.err.find('\n') == outcome.err.size() - 1);
  return outcome.err.substr(program.size() + 2, outcome.err.size() - program.size() - 3);
}

/// Checks that a sentence holds each of these names.
inline void check_named(const std::string& why, const std::vector<std::string>& names) {
  for (const std::string& name : names) CHECK_MESSAGE(mentions(why, name), why);
}

/// Flags of a capture of the tiny target; `store` is written.
inline Arguments capture_flags(const std::filesystem::path& store) {
  return {"--target-model-path",
          tiny_target,
          "--model-type",
          "dflash",
          "--draft-config-path",
          tiny_draft_config,
          "--data-path",
          tiny_prompts,
          "--output-path",
          store,
          "--dtype",
          "f32",
          "--threads",
          "1"};
}

/// Flags that both trainers share, of a small run.
inline Arguments train_flags(const std::filesystem::path& output) {
  return {"--target-model-path", tiny_target, "--draft-config-path", tiny_draft_config,
          "--output-dir",        output,      "--num-anchors",       "8",
          "--log-interval",      "1",         "--threads",           "1"};
}

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// The objects of a file of JSON lines.
inline std::vector<nlohmann::json> json_lines(const std::filesystem::path& path) {
  std::vector<nlohmann::json> objects;
  for (const auto& line : lines_of(content_of(path)))
    objects.push_back(nlohmann::json::parse(line));
  return objects;
}

/// A log without what differs from run to run: how fast it was.
inline std::vector<std::string> log_without_speed(const std::filesystem::path& output) {
  std::vector<std::string> lines;
  for (auto line : json_lines(output / "log.jsonl")) {
    line.erase("tokens_per_second");
    lines.push_back(line.dump());
  }
  return lines;
}

/// A copy of a folder that may be written to.
inline void copy_folder(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::filesystem::create_directories(to);
  for (const auto& entry : std::filesystem::directory_iterator(from))
    std::filesystem::copy_file(entry.path(), to / entry.path().filename());
}

/// Changes a JSON file in place.
template <class Change>
void change_json(const std::filesystem::path& path, Change change) {
  auto json = nlohmann::json::parse(content_of(path));
  change(json);
  put(path, json.dump());
}

/// The header of a safetensors file.
inline nlohmann::json safetensors_header(const std::filesystem::path& path) {
  const std::string content = content_of(path);
  std::uint64_t length = 0;
  std::memcpy(&length, content.data(), sizeof length);
  return nlohmann::json::parse(content.substr(sizeof length, length));
}

/// Changes the header of a safetensors file in place; its data stay.
template <class Change>
void change_safetensors_header(const std::filesystem::path& path, Change change) {
  const std::string content = content_of(path);
  std::uint64_t length = 0;
  std::memcpy(&length, content.data(), sizeof length);
  auto header = safetensors_header(path);
  change(header);
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t size = text.size();
  put(path, std::string(reinterpret_cast<const char*>(&size), sizeof size) + text +
                content.substr(sizeof length + length));
}
