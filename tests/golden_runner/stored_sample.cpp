// Samples as the reference's capture stores them: torch archives, plain or in gzip.

#include "dflash/import/specforge_folder.hpp"
#include "golden.hpp"

using namespace dflash;

namespace golden {
namespace {

template <class T>
std::vector<T> values(const TensorEntry& tensor) {
  std::vector<T> out(std::size_t(tensor.size()));
  convert(tensor, out.data());
  return out;
}

std::vector<std::byte> raw(const TensorEntry& tensor) {
  return {tensor.data, tensor.data + tensor.bytes()};
}

}  // namespace

void run_stored_sample(const GoldenCase& c, Report& report) {
  const std::string file = c.settings.at("file");
  const TorchArchive archive(c.folder / file);
  for (const auto& [name, expected] : c.tensors->tensors()) {
    const TensorEntry& tensor = archive.at(name);
    report.expect(tensor.dtype == expected.dtype, name + ": type");
    report.equal(name + ": shape", tensor.shape, expected.shape);
    report.equal(name, raw(tensor), raw(expected));
  }
  report.expect(archive.tensors().size() == c.tensors->tensors().size(), "number of tensors");
  const auto nulls = c.settings.at("null_keys").get<std::vector<std::string>>();
  report.equal("keys without a value", archive.nulls(), nulls);

  const SpecForgeSample sample(c.folder / file, file);
  report.equal("tokens", sample.tokenized().tokens, c.read<std::int32_t>("input_ids"));
  report.equal("loss mask", sample.tokenized().loss_mask, c.read<std::uint8_t>("loss_mask"));
  const bool eagle3 = c.has("aux_hidden_state");
  const std::string features = eagle3                   ? "aux_hidden_state"
                               : c.has("hidden_states") ? "hidden_states"
                                                        : "hidden_state";
  report.expect(sample.model_type() == std::string(eagle3 ? "eagle3" : "dflash"), "model type");
  report.equal("features", values<float>(sample.features()), c.read<float>(features));
  const index_t width =
      c.settings.at("hidden_size").get<index_t>() * c.settings.at("capture_layers").get<index_t>();
  report.equal("shape of the features", sample.features().shape,
               std::vector<index_t>{c.settings.at("rows").get<index_t>(), width});
  if (eagle3)
    report.equal("last hidden states", values<float>(sample.last_hidden()),
                 c.read<float>("hidden_state"));
}

}  // namespace golden
