#pragma once

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dflash/data/sample.hpp"
#include "dflash/import/torch_archive.hpp"

namespace dflash {

/// One sample as SpecForge's prepare_hidden_states.py stores it: a torch archive of input_ids and
/// loss_mask (n) and hidden states (1, n, width) under names that differ by version and method.
class SpecForgeSample {
 public:
  SpecForgeSample(const std::filesystem::path& path, std::string id) : archive_(path) {
    sample_.id = std::move(id);
    read("input_ids", sample_.tokens);
    read("loss_mask", sample_.loss_mask);
    if (sample_.tokens.size() != sample_.loss_mask.size())
      fail("input_ids has " + std::to_string(sample_.tokens.size()) + " entries, loss_mask " +
           std::to_string(sample_.loss_mask.size()));
    // "hidden_state" is the last layer where three captured ones lie beside it.
    if (archive_.contains("aux_hidden_state")) {
      features_ = rows("aux_hidden_state");
      last_hidden_ = rows("hidden_state");
    } else {
      features_ = rows(archive_.contains("hidden_states") ? "hidden_states" : "hidden_state");
    }
  }

  /// "eagle3" where the target's last hidden states are there too.
  const char* model_type() const { return last_hidden_.shape.empty() ? "dflash" : "eagle3"; }
  const TokenizedSample& tokenized() const { return sample_; }
  /// Captured layers side by side in each row.                                        (n, width)
  const TensorEntry& features() const { return features_; }
  /// Of EAGLE3 samples.                                                                (n, H)
  const TensorEntry& last_hidden() const { return last_hidden_; }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw Error(archive_.path().string() + ": " + why);
  }

  /// (n) or (1, n).
  template <class T>
  void read(const char* key, std::vector<T>& values) const {
    const TensorEntry& tensor = archive_.at(key);
    const auto& shape = tensor.shape;
    if (!(shape.size() == 1 || (shape.size() == 2 && shape[0] == 1)))
      fail(std::string(key) + " has shape " + to_string(shape) + " where (n) is expected");
    values.resize(std::size_t(tensor.size()));
    try {
      convert(tensor, values.data());
    } catch (const Error& error) {
      fail(std::string(key) + ": " + error.what());
    }
  }

  /// (n, width) of (n, width) or (1, n, width).
  TensorEntry rows(const char* key) const {
    TensorEntry tensor = archive_.at(key);
    auto& shape = tensor.shape;
    const auto found = shape;
    if (shape.size() == 3 && shape[0] == 1) shape.erase(shape.begin());
    if (shape.size() != 2 || shape[0] != index_t(sample_.tokens.size()))
      fail(std::string(key) + " has shape " + to_string(found) + " where (1, " +
           std::to_string(sample_.tokens.size()) + ", width) is expected");
    if (tensor.dtype != DType::bf16 && tensor.dtype != DType::f16 && tensor.dtype != DType::f32)
      fail(std::string(key) + " is " + std::string(name_of(tensor.dtype)) +
           " where BF16, F16 or F32 is expected");
    return tensor;
  }

  TorchArchive archive_;
  TokenizedSample sample_;
  TensorEntry features_, last_hidden_;
};

/// A folder of such samples, rows_A-B/data_I.ckpt or .ckpt.gz, in the order of their numbers.
class SpecForgeFolder {
 public:
  explicit SpecForgeFolder(std::filesystem::path folder) : folder_(std::move(folder)) {
    namespace fs = std::filesystem;
    if (!fs::is_directory(folder_)) throw Error(folder_.string() + " is no folder");
    for (const auto& entry : fs::recursive_directory_iterator(folder_))
      if (const auto number = number_of(entry.path().filename().string()))
        files_.emplace_back(*number, fs::relative(entry.path(), folder_).string());
    std::sort(files_.begin(), files_.end());
    if (files_.empty()) throw Error(folder_.string() + " has no data_N.ckpt or data_N.ckpt.gz");
    for (std::size_t i = 1; i < files_.size(); ++i)
      if (files_[i].first == files_[i - 1].first)
        throw Error(folder_.string() + " has a sample twice: " + files_[i - 1].second + " and " +
                    files_[i].second);
  }

  const std::filesystem::path& path() const { return folder_; }
  index_t size() const { return index_t(files_.size()); }
  /// Its id is its path in the folder.
  SpecForgeSample operator[](index_t i) const {
    const std::string& name = files_[std::size_t(i)].second;
    return SpecForgeSample(folder_ / name, name);
  }

 private:
  static std::optional<index_t> number_of(std::string_view name) {
    constexpr std::string_view before = "data_";
    if (!name.starts_with(before)) return std::nullopt;
    name.remove_prefix(before.size());
    index_t number = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
    const std::string_view rest(end, std::size_t(name.data() + name.size() - end));
    if (error != std::errc() || (rest != ".ckpt" && rest != ".ckpt.gz")) return std::nullopt;
    return number;
  }

  std::filesystem::path folder_;
  std::vector<std::pair<index_t, std::string>> files_;  // numbers, and paths in the folder
};

}  // namespace dflash
