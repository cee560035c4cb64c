#include "dflash/data/store_description.hpp"

#include <doctest/doctest.h>

#include "data/store_fixture.hpp"

namespace store_description_test {

using namespace dflash;

TEST_CASE("a description is written and read back") {
  const TemporaryFolder folder;
  const auto path = folder / "store.json";
  StoreDescription d = StoreFixture(3, DType::bf16, "eagle3").plan().description();
  d.target_name = "caf\xe9";  // no UTF-8
  write_store_description(path, d);
  const StoreDescription back = read_store_description(path);
  CHECK(back.samples == 3);
  CHECK(back.rows == d.rows);
  CHECK(back.width() == 12);
  CHECK(back.has_last_hidden());
  CHECK(back.dtype == DType::bf16);
  CHECK(text_of(to_json(back)) == text_of(to_json(d)));
  expect_same(path, back, d);
}

TEST_CASE("a description that lacks a field, or has an impossible one, is refused") {
  const TemporaryFolder folder;
  const auto path = folder / "store.json";
  const auto good = to_json(StoreFixture(3).plan().description());
  const auto complaint = [&](const nlohmann::ordered_json& json) {
    put(path, json.dump());
    return error_of([&] { read_store_description(path); });
  };
  CHECK(complaint(good).empty());
  for (const auto& [field, value] : good.items()) {
    auto bad = good;
    bad.erase(field);
    if (field != "rope_parameters")
      CHECK(complaint(bad) == path.string() + " has no field \"" + field + "\"");
    bad = good;
    bad[field] = nlohmann::json::array({nlohmann::json::object()});
    if (field != "rope_parameters")
      CHECK(complaint(bad).starts_with(path.string() + ": field \"" + field + "\" is "));
  }
  const auto with = [&](const char* field, const nlohmann::json& value) {
    auto bad = good;
    bad[field] = value;
    return complaint(bad);
  };
  CHECK(mentions(with("version", 2), "\"version\" is 2, but this program reads version 1"));
  CHECK(mentions(with("model_type", "x"), "\"model_type\" is \"x\" where \"dflash\" or"));
  CHECK(mentions(with("dtype", "I32"), "\"dtype\" is \"I32\" where \"BF16\""));
  CHECK(mentions(with("dtype", "x"), "\"dtype\" is \"x\" where \"BF16\""));
  CHECK(mentions(with("layer_ids", {1, -2}), "\"layer_ids\" is -2"));
  CHECK(mentions(with("layer_ids", nlohmann::json::array()), "\"layer_ids\""));
  CHECK(mentions(with("hidden_size", 0), "\"hidden_size\" is 0"));
  CHECK(mentions(with("hidden_size", std::int64_t(1) << 40), "\"hidden_size\""));
  CHECK(mentions(with("samples", -1), "\"samples\" is -1"));
  CHECK(mentions(with("rows", -1), "\"rows\" is -1"));
  CHECK(mentions(with("shard_bytes", 0), "\"shard_bytes\" is 0"));
}

TEST_CASE("the first field that differs is named with both values") {
  const StoreDescription d = StoreFixture(3).plan().description();
  StoreDescription other = d;
  other.layer_ids = {1, 5};
  other.sample_filter = "none";
  CHECK(error_of([&] { expect_same("s", d, other); }) ==
        "s: field \"layer_ids\" is [1,5,3], but now it would be [1,5]");
  other = d;
  other.target_name = "elsewhere";
  expect_same("s", d, other);
  other.target_fingerprint = "xxh3:9";
  CHECK(mentions(error_of([&] { expect_same("s", d, other); }), "\"target_name\""));
}

}  // namespace store_description_test
