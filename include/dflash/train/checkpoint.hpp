#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "dflash/core/choices.hpp"
#include "dflash/io/json_file.hpp"
#include "dflash/io/safetensors.hpp"
#include "dflash/io/safetensors_writer.hpp"
#include "dflash/train/adamw.hpp"
#include "dflash/train/checkpoint_folders.hpp"

namespace dflash {

/// The types that weights are exported in.
inline constexpr auto export_dtypes =
    choices<DType>("export dtype", {{"f32", DType::f32}, {"bf16", DType::bf16}});

/// What training in `Model` exports unless told otherwise.
template <class Model>
constexpr DType default_export_dtype() {
  return std::is_same_v<Model, bfloat16> ? DType::bf16 : DType::f32;
}

/// Error unless both objects have the same fields with equal values: "options" of a checkpoint at
/// `path` and of the run that is to go on from it. Fields of inner objects are named
/// "draft.layers".
inline void expect_same_options(const nlohmann::json& saved, const nlohmann::json& here,
                                const std::filesystem::path& path, const std::string& inside = "") {
  const auto complain = [&](const std::string& name, const std::string& what) {
    throw Error(path.string() +
                ": the run cannot go on with other options: " + in_quotes(inside + name) + what);
  };
  for (const auto& [name, value] : here.items()) {
    const auto found = saved.find(name);
    if (found == saved.end()) complain(name, " is not there, but " + value.dump() + " here");
    if (found->is_object() && value.is_object())
      expect_same_options(*found, value, path, inside + name + ".");
    else if (*found != value)
      complain(name, " is " + found->dump() + " there, but " + value.dump() + " here");
  }
  for (const auto& [name, value] : saved.items())
    if (!here.contains(name)) complain(name, " is " + value.dump() + " there, but not set here");
}

namespace detail {

/// Writes a safetensors file tensor by tensor: `data(i)` gives the bytes of tensor i when its turn
/// comes, so that a copy of one tensor is all the memory it takes.
inline void write_streamed(const std::filesystem::path& path, std::span<const TensorData> tensors,
                           const std::map<std::string, std::string>& metadata,
                           const std::function<const void*(std::size_t)>& data) {
  const SafetensorsLayout layout(tensors, metadata);
  AtomicFile file(path);
  file.reserve(layout.bytes);
  file.write(layout.header.data(), index_t(layout.header.size()));
  for (std::size_t i = 0; i < tensors.size(); ++i)
    file.write_at(layout.offsets[i], data(i), tensors[i].bytes());
  file.commit();
}

/// Where the parts of a slot lie in optimizer.safetensors.
inline std::string part_name(OptimizerPart part, const std::string& name) {
  const char* prefix[] = {"master.", "first_moment.", "second_moment."};
  return prefix[int(part)] + name;
}
inline constexpr OptimizerPart optimizer_parts[] = {
    OptimizerPart::master, OptimizerPart::first_moment, OptimizerPart::second_moment};
inline constexpr const char* steps_name = "steps";  // of every slot, in ascending order of name

inline Range range_of(const ParameterSlot& slot) { return {slot.offset, slot.offset + slot.size}; }

/// The indices of the slots, by name.
inline std::map<std::string, std::size_t> slots_by_name(const std::vector<ParameterSlot>& slots) {
  std::map<std::string, std::size_t> by_name;
  for (std::size_t i = 0; i < slots.size(); ++i) by_name[slots[i].name] = i;
  return by_name;
}

/// Copies masters, rounded to `dtype`.
template <class Master>
void round_to(DType dtype, const std::vector<Master>& from, index_t n, std::vector<std::byte>& to) {
  to.resize(std::size_t(n * size_of(dtype)));
  for (std::size_t i = 0; i < std::size_t(n); ++i) {
    const float value = static_cast<float>(from[i]);
    if (dtype == DType::bf16) {
      const bfloat16 rounded(value);
      std::memcpy(&to[i * sizeof rounded], &rounded, sizeof rounded);
    } else {
      std::memcpy(&to[i * sizeof value], &value, sizeof value);
    }
  }
}

}  // namespace detail

/// Writes model.safetensors: the optimizer's masters, rounded to f32 or bf16.
template <class Optimizer, class Weights>
void write_model(const std::filesystem::path& path, Optimizer& optimizer, Weights weights,
                 DType dtype) {
  expects(dtype == DType::f32 || dtype == DType::bf16, "a model is exported in f32 or bf16");
  std::vector<TensorData> tensors;
  for (const ParameterSlot& slot : optimizer.slots())
    tensors.push_back({slot.name, dtype, slot.shape});
  std::vector<typename Optimizer::Master> values;
  std::vector<std::byte> bytes;
  detail::write_streamed(path, tensors, {{"format", "pt"}}, [&](std::size_t i) {
    const ParameterSlot& slot = optimizer.slots()[i];
    values.resize(std::size_t(slot.size));
    optimizer.read(OptimizerPart::master, weights, detail::range_of(slot), values.data());
    detail::round_to(dtype, values, slot.size, bytes);
    return static_cast<const void*>(bytes.data());
  });
}

/// Writes optimizer.safetensors: masters, moments and step counts, exactly.
template <class Optimizer, class Weights>
void write_optimizer(const std::filesystem::path& path, Optimizer& optimizer, Weights weights) {
  using Master = typename Optimizer::Master;
  const auto& slots = optimizer.slots();
  std::vector<TensorData> tensors;
  for (const OptimizerPart part : detail::optimizer_parts)
    for (const ParameterSlot& slot : slots)
      tensors.push_back({detail::part_name(part, slot.name), dtype_of<Master>(), slot.shape});
  std::vector<std::int64_t> steps;
  for (const auto& [name, i] : detail::slots_by_name(slots)) steps.push_back(optimizer.steps()[i]);
  tensors.push_back({detail::steps_name, DType::i64, {index_t(steps.size())}});
  std::vector<Master> values;
  detail::write_streamed(path, tensors, {}, [&](std::size_t i) -> const void* {
    if (i + 1 == tensors.size()) return steps.data();
    const ParameterSlot& slot = slots[i % slots.size()];
    values.resize(std::size_t(slot.size));
    optimizer.read(detail::optimizer_parts[i / slots.size()], weights, detail::range_of(slot),
                   values.data());
    return values.data();
  });
}

/// Reads optimizer.safetensors back into the optimizer and the weights. Error naming file and
/// tensor if one is missing, too many, of another shape or of another type.
template <class Optimizer, class Weights>
void read_optimizer(const std::filesystem::path& path, Optimizer& optimizer, Weights weights) {
  using Master = typename Optimizer::Master;
  const SafetensorsFile file(path);
  const auto& slots = optimizer.slots();
  const auto fail = [&](const std::string& name, const std::string& what) {
    throw Error(path.string() + ": tensor " + in_quotes(name) + " " + what);
  };
  const auto check = [&](const std::string& name, DType dtype, const std::vector<index_t>& shape) {
    const TensorEntry& tensor = file.at(name);
    if (tensor.dtype != dtype)
      fail(name, "is " + std::string(name_of(tensor.dtype)) + " where this run has " +
                     std::string(name_of(dtype)));
    if (tensor.shape != shape)
      fail(name,
           "has shape " + to_string(tensor.shape) + " where the model has " + to_string(shape));
  };
  // All is checked before anything is changed.
  std::set<std::string> known{detail::steps_name};
  for (const OptimizerPart part : detail::optimizer_parts)
    for (const ParameterSlot& slot : slots) {
      const std::string name = detail::part_name(part, slot.name);
      known.insert(name);
      check(name, dtype_of<Master>(), slot.shape);
    }
  check(detail::steps_name, DType::i64, {index_t(slots.size())});
  for (const auto& [name, tensor] : file.tensors())
    if (!known.contains(name)) fail(name, "belongs to no weight of the model");

  const auto steps = file.template read<std::int64_t>(detail::steps_name);
  std::size_t at = 0;
  for (const auto& [name, i] : detail::slots_by_name(slots)) {
    if (steps[at] < 0) fail(detail::steps_name, "counts " + std::to_string(steps[at]) + " steps");
    optimizer.steps()[i] = steps[at++];
  }
  std::vector<Master> values;
  for (const OptimizerPart part : detail::optimizer_parts)
    for (const ParameterSlot& slot : slots) {
      values.resize(std::size_t(slot.size));
      file.read(detail::part_name(part, slot.name), slot.shape, values.data());
      optimizer.write(part, weights, detail::range_of(slot), values.data());
    }
}

/// Saves `step-000123/`, which is a published draft (config.json, model.safetensors) and all that
/// training needs to go on bit for bit. config.json names the exported dtype. Returns the folder.
template <Backend B, class Model>
std::filesystem::path save_checkpoint(const CheckpointFolders& folders, index_t step,
                                      AdamW<B, Model>& optimizer, View<Model, 1> weights,
                                      nlohmann::json config, const nlohmann::json& trainer_state,
                                      DType dtype = default_export_dtype<Model>()) {
  config["dtype"] = dtype == DType::bf16 ? "bfloat16" : "float32";
  return folders.save(step, [&](const std::filesystem::path& folder) {
    write_model(folder / "model.safetensors", optimizer, weights, dtype);
    write_optimizer(folder / "optimizer.safetensors", optimizer, weights);
    write_json(folder / "config.json", config);
    write_json(folder / "trainer_state.json", trainer_state);
  });
}

/// Loads a checkpoint into the optimizer and the weights and returns its trainer_state.json, whose
/// "options" must equal `options`. Error naming the file, the field and both values otherwise.
template <Backend B, class Model>
nlohmann::json load_checkpoint(const std::filesystem::path& folder, AdamW<B, Model>& optimizer,
                               View<Model, 1> weights, const nlohmann::json& options) {
  const auto path = folder / "trainer_state.json";
  nlohmann::json state = read_json(path);
  expect_same_options(required<nlohmann::json>(state, "options", path), options, path);
  read_optimizer(folder / "optimizer.safetensors", optimizer, weights);
  return state;
}

}  // namespace dflash
