#include "dflash/io/json_file.hpp"

#include <doctest/doctest.h>

#include "io/temporary_folder.hpp"

namespace json_file_test {

using namespace dflash;

TEST_CASE("what is no JSON is an error with file, line and column") {
  const TemporaryFolder folder;
  const auto path = folder / "x.json";
  const auto complaint = [&](const std::string& content) {
    put(path, content);
    return error_of([&] { read_json(path); });
  };
  CHECK(complaint("{\"a\": 1}").empty());
  CHECK(complaint("{\n  \"a\": 1,\n  b\n}") == path.string() + ":3:3 is not valid JSON");
  CHECK(complaint("{\"a\": ") == path.string() + ":1:7 is not valid JSON: the file ends early");
  CHECK(complaint("").starts_with(path.string() + ":1:1 is not valid JSON"));
  CHECK(mentions(complaint("{\"a\": \"\xff\"}"), ":1:8 is not valid JSON"));
  CHECK(mentions(complaint("{\"a\": 1e9999}"), "a number overflows"));
  const auto nested = [](std::size_t levels) {
    return std::string(levels, '[') + std::string(levels, ']');
  };
  CHECK(complaint(nested(200)).empty());
  CHECK(complaint("{\"a\": " + nested(100'000) + "}") == path.string() + " nests too deeply");
  CHECK(mentions(error_of([&] { read_json(folder / "absent"); }), "cannot open"));
}

TEST_CASE("fields are read by type, through inner objects") {
  const auto json = nlohmann::json::parse(
      R"({"n": 3, "big": 4294967296, "x": 2, "s": "t", "yes": true, "nothing": null,
          "list": [1, 2], "inner": {"n": 4, "deep": {"names": ["a"]}}})");
  const std::filesystem::path path = "c.json";
  CHECK(required<int>(json, "n", path) == 3);
  CHECK(required<std::int64_t>(json, "big", path) == 4294967296);
  CHECK(required<double>(json, "x", path) == 2);
  CHECK(required<std::string>(json, "s", path) == "t");
  CHECK(required<bool>(json, "yes", path));
  CHECK(required<std::vector<index_t>>(json, "list", path) == std::vector<index_t>{1, 2});
  CHECK(required<int>(json, "inner.n", path) == 4);
  CHECK(required<std::vector<std::string>>(json, "inner.deep.names", path)[0] == "a");
  CHECK(optional<int>(json, "absent", path, 7) == 7);
  CHECK(optional<int>(json, "nothing", path, 7) == 7);
  CHECK(optional<int>(json, "n.absent", path, 7) == 7);
  CHECK(optional<int>(json, "n", path, 7) == 3);
}

TEST_CASE("a field that is missing or of another type is named, with what was found") {
  const auto json = nlohmann::json::parse(
      R"({"n": -3, "big": 4294967296, "x": 2.5, "s": "t", "list": [1, "b"]})");
  const std::filesystem::path path = "c.json";
  CHECK(error_of([&] { required<int>(json, "m", path); }) == "c.json has no field \"m\"");
  CHECK(error_of([&] { required<int>(json, "s", path); }) ==
        "c.json: field \"s\" is \"t\" where a whole number is expected");
  CHECK(mentions(error_of([&] { required<int>(json, "x", path); }), "is 2.5 where"));
  CHECK(mentions(error_of([&] { required<int>(json, "big", path); }), "is 4294967296 where"));
  CHECK(mentions(error_of([&] { required<std::uint32_t>(json, "n", path); }), "is -3 where"));
  CHECK(mentions(error_of([&] { required<bool>(json, "n", path); }), "true or false"));
  CHECK(mentions(error_of([&] { required<std::string>(json, "n", path); }), "a string"));
  CHECK(mentions(error_of([&] { optional<double>(json, "s", path); }), "a number"));
  CHECK(error_of([&] { required<std::vector<int>>(json, "list", path); }) ==
        "c.json: field \"list\" is [1,\"b\"] where a list, each entry a whole number is expected");
}

TEST_CASE("JSON is written and read back") {
  const TemporaryFolder folder;
  const nlohmann::json json = {{"a", {1, 2}}, {"b", "\xff"}};
  write_json(folder / "x.json", json);
  const auto back = read_json(folder / "x.json");
  CHECK(back["a"] == json["a"]);
  CHECK(back["b"] == "\xef\xbf\xbd");
}

}  // namespace json_file_test
