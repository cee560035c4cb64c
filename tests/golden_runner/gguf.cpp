// GGUF: blocks of each type, bit for bit, and a real file where it is at hand.

#include <cstdlib>
#include <map>

#include "dflash/import/gguf_file.hpp"
#include "golden.hpp"

using namespace dflash;
using Json = nlohmann::json;

namespace golden {
namespace {

std::vector<std::byte> from_hex(const std::string& text) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2)
    bytes.push_back(std::byte(std::stoi(text.substr(i, 2), nullptr, 16)));
  return bytes;
}

void run_blocks(const Json& types, Report& report) {
  for (const Json& facts : types) {
    const std::string name = facts.at("type");
    const GgufType* const type = gguf_type(facts.at("ggml_id").get<std::uint32_t>());
    report.expect(type != nullptr && type->name == name, name + ": number");
    if (type == nullptr) continue;
    report.expect(type->values == facts.at("values_per_block").get<index_t>() &&
                      type->bytes == facts.at("bytes_per_block").get<index_t>(),
                  name + ": size of a block");
    int index = 0;
    for (const Json& block : facts.at("blocks")) {
      const auto raw = from_hex(block.at("raw")), bits = from_hex(block.at("bits"));
      const index_t blocks = index_t(raw.size()) / type->bytes;
      std::vector<float> values(std::size_t(blocks * type->values));
      GgufTensor{type, {index_t(values.size())}, raw.data()}.read(values.data());
      const auto* const first = reinterpret_cast<const std::byte*>(values.data());
      report.equal(name + " block " + std::to_string(index++),
                   std::vector<std::byte>(first, first + values.size() * sizeof(float)), bits);
    }
  }
}

void check_metadata(const GgufFile& file, const Json& entries, Report& report) {
  report.expect(file.metadata().size() == entries.size(), "number of keys");
  for (const Json& entry : entries) {
    const std::string key = entry.at("key");
    const auto found = file.metadata().find(key);
    report.expect(found != file.metadata().end(), key);
    if (found == file.metadata().end()) continue;
    const Json& value = found->second;
    if (entry.at("type") != "ARRAY") {
      report.expect(value == entry.at("value"), key);
      continue;
    }
    const Json &first = entry.at("first"), &last = entry.at("last");
    report.expect(value.size() == entry.at("count").get<std::size_t>() &&
                      std::equal(first.begin(), first.end(), value.begin()) &&
                      std::equal(last.rbegin(), last.rend(), value.rbegin()),
                  key);
  }
}

void check_tensors(const GgufFile& file, const Json& tensors, Report& report) {
  report.expect(file.tensors().size() == tensors.size(), "number of tensors");
  for (const Json& facts : tensors) {
    const std::string name = facts.at("name");
    const auto found = file.tensors().find(name);
    report.expect(found != file.tensors().end(), name);
    if (found == file.tensors().end()) continue;
    const GgufTensor& tensor = found->second;
    auto shape = facts.at("shape").get<std::vector<index_t>>();
    std::reverse(shape.begin(), shape.end());
    report.equal(name + ": shape", tensor.shape, shape);
    report.expect(tensor.type->name == facts.at("type").get<std::string>() &&
                      file.offset_of(tensor) == facts.at("offset").get<index_t>() &&
                      tensor.bytes() == facts.at("bytes").get<index_t>(),
                  name + ": type or place");
    std::vector<float> values(std::size_t(tensor.size()));
    tensor.read(values.data());
    const auto first = facts.at("first").get<std::vector<float>>();
    report.equal(name + ": first values",
                 std::vector<float>(values.begin(), values.begin() + index_t(first.size())), first);
    double sum = 0, squares = 0;
    for (const float x : values) sum += x, squares += double(x) * x;
    report.near(name + ": sum of squares", squares, facts.at("sum_of_squares").get<double>(), 1e-9);
    report.expect(std::abs(sum - facts.at("sum").get<double>()) <
                      1e-9 * std::sqrt(squares * double(values.size())),
                  name + ": sum");
  }
}

}  // namespace

/// DFLASH_GGUF names a folder with the real files that cases describe.
void run_gguf(const GoldenCase& c, Report& report) {
  if (c.settings.contains("types")) return run_blocks(c.settings["types"], report);
  const std::string name = c.settings.at("file");
  const char* const elsewhere = std::getenv("DFLASH_GGUF");
  std::filesystem::path path = c.folder / name;
  if (!std::filesystem::exists(path) && elsewhere != nullptr)
    path = std::filesystem::path(elsewhere) / name;
  if (!std::filesystem::exists(path)) return report.skip(name + " is not here");
  const GgufFile file(path);
  report.expect(file.version() == c.settings.at("version").get<std::uint32_t>(), "version");
  report.expect(file.data_offset() == c.settings.at("data_offset").get<index_t>(), "data offset");
  check_metadata(file, c.settings.at("metadata"), report);
  check_tensors(file, c.settings.at("tensors"), report);
}

}  // namespace golden
