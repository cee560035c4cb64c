#include "dflash/data/target_fingerprint.hpp"

#include <doctest/doctest.h>

#include "dflash/io/safetensors_writer.hpp"
#include "io/temporary_folder.hpp"

namespace target_fingerprint_test {

using namespace dflash;

struct SmallTarget {
  TemporaryFolder folder;
  std::vector<float> a = std::vector<float>(300, 1.0f), b = std::vector<float>(1'000'000, 2.0f);

  SmallTarget() {
    put(folder / "config.json", R"({"model_type": "qwen3", "rope_theta": 10000.0, "x": 1})");
    write();
  }
  void write() {
    const TensorData tensors[] = {{"a", DType::f32, {300}, a.data()},
                                  {"b", DType::f32, {1'000'000}, b.data()}};
    write_safetensors(folder / "model.safetensors", tensors);
  }
  std::string fingerprint() const { return target_fingerprint(folder.path()); }
};

TEST_CASE("a target keeps its fingerprint under another path, cut and irrelevant field") {
  SmallTarget one, two;
  CHECK(one.fingerprint() == two.fingerprint());
  const TensorData a[] = {{"a", DType::f32, {300}, two.a.data()}},
                   b[] = {{"b", DType::f32, {1'000'000}, two.b.data()}};
  write_safetensors(two.folder / "1.safetensors", a);
  write_safetensors(two.folder / "2.safetensors", b);
  std::filesystem::remove(two.folder / "model.safetensors");
  put(two.folder / "model.safetensors.index.json",
      R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})");
  put(two.folder / "config.json", R"({"x": 2, "rope_theta": 10000.0, "model_type": "qwen3"})");
  CHECK(one.fingerprint() == two.fingerprint());
}

TEST_CASE("another weight or another config is another target") {
  SmallTarget one, two;
  two.a[299] += 1;
  two.write();
  CHECK(one.fingerprint() != two.fingerprint());
  SmallTarget three;
  for (float& x : three.b) x += 0x1p-10f;
  three.write();
  CHECK(one.fingerprint() != three.fingerprint());
  SmallTarget four;
  put(four.folder / "config.json", R"({"model_type": "qwen3", "rope_theta": 20000.0})");
  CHECK(one.fingerprint() != four.fingerprint());
}

}  // namespace target_fingerprint_test
