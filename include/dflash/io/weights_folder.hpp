#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/core/error.hpp"
#include "dflash/io/json_file.hpp"
#include "dflash/io/safetensors.hpp"

namespace dflash {

/// The weights of a Hugging Face model folder: model.safetensors, or the shards that
/// model.safetensors.index.json names. Errors name the file and the tensor.
class WeightsFolder {
 public:
  explicit WeightsFolder(const std::filesystem::path& folder) : folder_(folder) {
    const auto single = folder / "model.safetensors",
               index = folder / "model.safetensors.index.json";
    if (std::filesystem::exists(single)) {
      const SafetensorsFile& file = open("model.safetensors");
      for (const auto& [name, tensor] : file.tensors()) files_of_[name] = &file;
    } else if (std::filesystem::exists(index)) {
      read_index(index);
    } else {
      throw Error(folder.string() +
                  " has neither model.safetensors nor model.safetensors.index.json");
    }
  }

  const std::filesystem::path& folder() const { return folder_; }
  bool contains(std::string_view name) const { return files_of_.find(name) != files_of_.end(); }

  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& [name, file] : files_of_) all.push_back(name);
    return all;
  }

  const TensorEntry& at(std::string_view name) const { return file_of(name).at(name); }

  /// Copies a tensor that must have this shape, converted to T.
  template <class T>
  void read(std::string_view name, const std::vector<index_t>& shape, T* out) const {
    file_of(name).read(name, shape, out);
  }
  /// The same of a part of it; the pages of the rest are not read.
  template <class T>
  void read(std::string_view name, const std::vector<index_t>& shape, const TensorPart& part,
            T* out) const {
    file_of(name).read(name, shape, part, out);
  }

  /// The files themselves, by name.
  const std::map<std::string, SafetensorsFile>& files() const { return files_; }

 private:
  void read_index(const std::filesystem::path& path) {
    const nlohmann::json index = read_json(path);
    const auto map = required<nlohmann::json>(index, "weight_map", path);
    if (!map.is_object()) throw Error(path.string() + ": field \"weight_map\" is not an object");
    for (const auto& [name, shard] : map.items()) {
      const auto file_name = typed<std::string>(shard, "weight_map." + name, path);
      // A name that leads out of the folder is an attack or a mistake.
      if (file_name.find('/') != std::string::npos ||
          std::filesystem::path(file_name).extension() != ".safetensors")
        throw Error(path.string() + ": tensor " + in_quotes(name) + " lies in " +
                    in_quotes(file_name) +
                    ", which is not the name of a safetensors file in this folder");
      if (!files_.contains(file_name) && !std::filesystem::exists(folder_ / file_name))
        throw Error(path.string() + ": tensor " + in_quotes(name) + " lies in " +
                    in_quotes(file_name) + ", which does not exist");
      const SafetensorsFile& file = open(file_name);
      if (!file.contains(name))
        throw Error(path.string() + ": tensor " + in_quotes(name) + " is not in " +
                    in_quotes(file_name));
      files_of_[name] = &file;
    }
  }

  const SafetensorsFile& open(const std::string& name) {
    return files_.try_emplace(name, folder_ / name).first->second;
  }

  const SafetensorsFile& file_of(std::string_view name) const {
    const auto found = files_of_.find(name);
    if (found == files_of_.end())
      throw Error(folder_.string() + ": its weights have no tensor " + in_quotes(name));
    return *found->second;
  }

  std::filesystem::path folder_;
  std::map<std::string, SafetensorsFile> files_;
  std::map<std::string, const SafetensorsFile*, std::less<>> files_of_;
};

}  // namespace dflash
