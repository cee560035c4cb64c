#include "dflash/io/safetensors_writer.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "dflash/io/safetensors.hpp"
#include "io/full_disk.hpp"
#include "io/temporary_folder.hpp"

namespace safetensors_writer_test {

using namespace dflash;

TEST_CASE("tensors of every type come back as they were written, aligned") {
  const TemporaryFolder folder;
  const auto path = folder / "x.safetensors";
  std::vector<std::vector<std::byte>> contents;
  std::vector<TensorData> tensors;
  for (int i = 0; i <= int(DType::f64); ++i) {
    const auto dtype = DType(i);
    std::vector<std::byte> bytes(std::size_t(15 * size_of(dtype)));
    for (std::size_t b = 0; b < bytes.size(); ++b)
      bytes[b] = dtype == DType::boolean ? std::byte(b % 2) : std::byte(37 * b + std::size_t(i));
    contents.push_back(bytes);
    tensors.push_back({std::string(name_of(dtype)), dtype, {3, 5}, contents.back().data()});
  }
  tensors.push_back({"scalar", DType::f32, {}, contents[0].data()});
  tensors.push_back({"empty", DType::f64, {0, 7}, nullptr});
  for (const index_t multiple : {8, 4096}) {
    write_safetensors(path, tensors, {{"format", "pt"}, {"quote", "\"\n\xff"}}, multiple);
    const SafetensorsFile file(path);
    CHECK(file.tensors().size() == tensors.size());
    CHECK(file.metadata().at("format") == "pt");
    CHECK(file.metadata().at("quote") == "\"\n\xef\xbf\xbd");
    const std::string bytes = content_of(path);
    index_t first = index_t(bytes.size());
    for (const TensorData& tensor : tensors) {
      const TensorEntry& entry = file.at(tensor.name);
      CHECK(entry.dtype == tensor.dtype);
      CHECK(entry.shape == tensor.shape);
      if (tensor.data != nullptr)
        CHECK(std::memcmp(entry.data, tensor.data, std::size_t(entry.bytes())) == 0);
      CHECK(reinterpret_cast<std::uintptr_t>(entry.data) % std::uintptr_t(size_of(entry.dtype)) ==
            0);
    }
    for (const index_t offset : SafetensorsLayout(tensors, file.metadata(), multiple).offsets)
      first = std::min(first, offset);
    CHECK(first % multiple == 0);
  }
}

TEST_CASE("tensors with larger elements come first, else in the given order") {
  const TensorData tensors[] = {{"u8", DType::u8, {3}},
                                {"f32", DType::f32, {1}},
                                {"i32", DType::i32, {1}},
                                {"u64", DType::u64, {1}}};
  const SafetensorsLayout layout(tensors);
  const index_t start = index_t(layout.header.size());
  CHECK(layout.offsets == std::vector<index_t>{start + 16, start + 8, start + 12, start});
  CHECK(layout.bytes == start + 19);
}

TEST_CASE("two tensors of the same name are refused") {
  const TensorData tensors[] = {{"a", DType::u8, {1}}, {"a", DType::u8, {1}}};
  CHECK_THROWS_AS(SafetensorsLayout{tensors}, Error);
}

TEST_CASE("a full disk is one sentence that names the file, and leaves nothing behind") {
  const TemporaryFolder folder;
  const auto path = folder / "x.safetensors";
  const std::vector<float> data(100'000, 1.0f);
  const TensorData tensors[] = {{"a", DType::f32, {100'000}, data.data()}};
  const int status = with_file_limit(50'000, [&] {
    const std::string text = error_of([&] { write_safetensors(path, tensors); });
    return text.starts_with("cannot write " + path.string() + ": ") ? 0 : 1;
  });
  CHECK(status == 0);
  CHECK(files_below(folder.path()).empty());
}

}  // namespace safetensors_writer_test
