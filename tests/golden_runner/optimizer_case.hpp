#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "dflash/train/adamw.hpp"
#include "golden_runner/golden.hpp"
#include "golden_runner/on_backend.hpp"

namespace golden {

using dflash::index_t;

inline double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]);
    worst = difference <= worst ? worst : difference;
  }
  return worst;
}

/// Which tensors of a case make one trajectory.
struct Trajectory {
  std::string results;    // prefix of .master, .grad_norm, .final_m ...
  std::string start;      // prefix of the start values
  std::string gradients;  // prefix
  double absolute;        // tolerance of weights and moments
  double relative;        // tolerance of the norm
};

inline const Trajectory trajectory_fp32{"fp32", "fp32.start.", "fp32.grad.", 1e-6, 1e-5};
inline const Trajectory trajectory_bf16{"bf16", "bf16.start.", "bf16.grad.", 1e-6, 1e-5};
inline const Trajectory trajectory_torch32{"torch32", "init.", "fp32.grad.", 1e-6, 1e-5};
inline const Trajectory trajectory_torch64{"torch64", "init.", "fp32.grad.", 1e-12, 1e-12};

/// Replays a trajectory with the weights kept as `Model`.
template <class Model, dflash::Backend B>
void replay(B& backend, const GoldenCase& test, const Trajectory& path, Report& report) {
  using T = typename dflash::AdamW<B, Model>::Master;
  const auto& hyper = test.settings.at("hyper");
  const auto names = test.settings.at("param_order").get<std::vector<std::string>>();
  const auto steps = test.settings.at("steps").get<index_t>();

  std::vector<dflash::ParameterSlot> slots;
  std::vector<double> start;
  for (const std::string& name : names) {
    const auto values = test.read<double>(path.start + name);
    slots.push_back(
        {name, test.shape(path.start + name), index_t(start.size()), index_t(values.size())});
    start.insert(start.end(), values.begin(), values.end());
  }
  std::vector<Model> initial;
  for (const double value : start) {
    if constexpr (std::is_same_v<Model, dflash::bfloat16>)
      initial.push_back(Model(float(value)));
    else
      initial.push_back(Model(value));
  }
  const auto total = index_t(initial.size());
  auto weights = dflash::uploaded(backend, initial.data(), total);
  dflash::AdamW<B, Model> optimizer(backend, weights.view(), slots,
                                    {.beta1 = hyper.at("betas").at(0),
                                     .beta2 = hyper.at("betas").at(1),
                                     .eps = hyper.at("eps"),
                                     .decay = hyper.at("weight_decay"),
                                     .max_grad_norm = hyper.at("max_grad_norm")});

  const auto read_part = [&](dflash::OptimizerPart part, const dflash::ParameterSlot& slot) {
    std::vector<T> values(std::size_t(slot.size));
    optimizer.read(part, weights.view(), {slot.offset, slot.offset + slot.size}, values.data());
    return std::vector<double>(values.begin(), values.end());
  };
  const auto at_step = [&](const std::string& tensor, index_t step, index_t size) {
    const auto all = test.read<double>(tensor);
    return std::vector<double>(all.begin() + step * size, all.begin() + (step + 1) * size);
  };

  const auto rates = test.read<double>("lr");
  std::vector<double> norms;
  for (index_t step = 0; step < steps; ++step) {
    const std::string when = path.results + " step " + std::to_string(step) + " ";
    std::vector<index_t> absent;
    std::vector<T> gradient(initial.size());
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const auto values = at_step(path.gradients + slots[i].name, step, slots[i].size);
      for (index_t j = 0; j < slots[i].size; ++j)
        gradient[std::size_t(slots[i].offset + j)] = T(values[std::size_t(j)]);
      for (const auto& missing : test.settings.at("missing_grads"))
        if (missing.at("param") == slots[i].name && missing.at("step") == step)
          absent.push_back(index_t(i));
    }
    const auto there = dflash::uploaded(backend, gradient.data(), total);
    norms.push_back(
        optimizer.step(weights.view(), there.view(), rates[std::size_t(step)], 1, absent));
    for (const auto& slot : slots) {
      const auto masters = read_part(dflash::OptimizerPart::master, slot);
      const auto expected = at_step(path.results + ".master." + slot.name, step, slot.size);
      report.expect(largest_difference(masters, expected) <= path.absolute,
                    when + "master " + slot.name);
      if constexpr (std::is_same_v<Model, dflash::bfloat16>) {
        const auto model = at_step(path.results + ".model." + slot.name, step, slot.size);
        const auto stored =
            host(backend, weights.view().rows({slot.offset, slot.offset + slot.size}));
        bool rounded = true, near = true;
        for (index_t j = 0; j < slot.size; ++j) {
          const float here = stored[std::size_t(j)];
          const double there_value = model[std::size_t(j)];
          rounded = rounded && here == static_cast<float>(Model(float(masters[std::size_t(j)])));
          near = near && std::abs(here - there_value) <= 0x1p-7 * std::abs(there_value) + 1e-6;
        }
        report.expect(rounded && near, when + "model " + slot.name);
      }
    }
  }
  report.near(path.results + ".grad_norm", norms, test.read<double>(path.results + ".grad_norm"),
              path.relative);
  for (const auto& slot : slots) {
    if (!test.has(path.results + ".final_m." + slot.name)) continue;
    const auto compare = [&](dflash::OptimizerPart part, const std::string& tensor) {
      report.near(tensor + slot.name, read_part(part, slot), test.read<double>(tensor + slot.name),
                  1e-5);
    };
    compare(dflash::OptimizerPart::first_moment, path.results + ".final_m.");
    compare(dflash::OptimizerPart::second_moment, path.results + ".final_v.");
  }
}

}  // namespace golden
