#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/core/host_vector.hpp"
#include "dflash/core/operations.hpp"
#include "dflash/model/parameters.hpp"
#include "dflash/train/number_text.hpp"

namespace dflash {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0;
  double max_grad_norm = 1;  // 0 or infinite: no clipping

  /// Error if an option is out of range.
  void check() const {
    const auto must = [](bool ok, const char* what, double value) {
      if (!ok) throw Error(std::string("AdamW: ") + what + ", got " + number_text(value));
    };
    must(beta1 >= 0 && beta1 < 1, "beta1 must be in [0, 1)", beta1);
    must(beta2 >= 0 && beta2 < 1, "beta2 must be in [0, 1)", beta2);
    must(eps >= 0, "eps must be at least 0", eps);
    must(decay >= 0, "the weight decay must be at least 0", decay);
    must(max_grad_norm >= 0, "max_grad_norm must be at least 0", max_grad_norm);
  }
};

/// What an optimizer keeps per weight.
enum class OptimizerPart { master, first_moment, second_moment };

/// AdamW (arXiv:1711.05101) over one flat buffer of weights, with the gradient clipped by its
/// global norm. Each tensor has its own step count, so that one without a gradient stands still.
/// Where the model is kept in fewer than 32 bits, float masters are stepped and the model is these,
/// rounded. With a slice, only that range of the buffer is kept and stepped: for sharded
/// optimizers.
template <Backend B, class Model = typename B::value_type>
class AdamW {
 public:
  using Master = std::conditional_t<std::is_same_v<Model, double>, double, float>;
  static constexpr bool has_masters = !std::is_same_v<Model, Master>;

  /// Takes the masters from `weights`. The slots lie in them in ascending order.
  AdamW(B& backend, View<Model, 1> weights, std::vector<ParameterSlot> slots,
        AdamWOptions options = {})
      : AdamW(backend, weights, std::move(slots), options, Range{0, weights.size()}) {}

  AdamW(B& backend, View<Model, 1> weights, std::vector<ParameterSlot> slots, AdamWOptions options,
        Range slice)
      : backend_(&backend),
        slots_(std::move(slots)),
        options_(options),
        slice_(slice),
        steps_(slots_.size()),
        m_(backend, {slice.size()}),
        v_(backend, {slice.size()}) {
    options_.check();
    expects(0 <= slice.begin && slice.begin <= slice.end && slice.end <= weights.size(),
            "AdamW: the slice lies outside the weights");
    index_t end = 0;
    for (const ParameterSlot& slot : slots_) {
      expects(slot.offset >= end && slot.offset + slot.size <= weights.size(),
              "AdamW: the slots are out of order or outside the weights");
      end = slot.offset + slot.size;
    }
    fill(backend, m_.view(), Master(0));
    fill(backend, v_.view(), Master(0));
    if constexpr (has_masters) {
      masters_ = Tensor<B, Master, 1>(backend, {slice.size()});
      convert(backend, weights.rows(slice), masters_.view());
    }
  }

  /// One step along gradients / denominator. Returns that gradient's norm before clipping. If it is
  /// not finite (the denominator may be 0) nothing changes: the step is skipped. `absent` names the
  /// slots without a gradient. For an optimizer without a slice.
  template <class G>
  double step(View<Model, 1> weights, View<G, 1> gradients, double rate, double denominator,
              const std::vector<index_t>& absent = {}) {
    expects(slice_.begin == 0 && slice_.end == weights.size(),
            "AdamW: a slice is stepped with the norm of the whole gradient: use apply");
    const double norm = std::sqrt(squared_norm(gradients, absent)) / std::abs(denominator);
    apply(weights, gradients, rate, denominator, norm, absent);
    return norm;
  }

  /// Sum of squares of the slice's undivided gradients.
  template <class G>
  double squared_norm(View<G, 1> gradients, const std::vector<index_t>& absent = {}) const {
    double sum = 0;
    for (const auto& [range, first] : runs(absent))
      sum += sum_of_squares(*backend_, gradients.rows(range));
    return sum;
  }

  /// The step itself, when the norm of gradients / denominator over all slices is known. False if
  /// it was skipped because the norm is not finite.
  template <class G>
  bool apply(View<Model, 1> weights, View<G, 1> gradients, double rate, double denominator,
             double norm, const std::vector<index_t>& absent = {}) {
    if (!std::isfinite(norm)) return false;
    const double limit = options_.max_grad_norm;
    const double clip =
        limit > 0 && std::isfinite(limit) ? std::min(1.0, limit / (norm + 1e-6)) : 1.0;
    const auto ranges = runs(absent);
    for (std::size_t i = 0; i < slots_.size(); ++i)
      if (!is_absent(i, absent)) ++steps_[i];
    for (const auto& [range, first] : ranges) {
      const double t = double(steps_[first]);
      const AdamWStep step{.rate = rate,
                           .beta1 = options_.beta1,
                           .beta2 = options_.beta2,
                           .eps = options_.eps,
                           .decay = options_.decay,
                           .gradient_scale = clip / denominator,
                           .correction1 = 1 - std::pow(options_.beta1, t),
                           .correction2 = 1 - std::pow(options_.beta2, t)};
      const Range own = inside(range);
      const View<Master, 1> masters = view(OptimizerPart::master, weights).rows(own);
      step_range(step, gradients.rows(range), masters, own, weights.rows(range));
    }
    return true;
  }

  const std::vector<ParameterSlot>& slots() const { return slots_; }
  const AdamWOptions& options() const { return options_; }
  Range slice() const { return slice_; }
  B& backend() const { return *backend_; }

  /// How often each slot was stepped.
  std::vector<index_t>& steps() { return steps_; }
  const std::vector<index_t>& steps() const { return steps_; }

  /// The slice's masters or moments, in the order of the flat buffer.
  View<Master, 1> view(OptimizerPart which, [[maybe_unused]] View<Model, 1> weights) {
    if (which == OptimizerPart::first_moment) return m_.view();
    if (which == OptimizerPart::second_moment) return v_.view();
    if constexpr (has_masters)
      return masters_.view();
    else
      return weights.rows(slice_);
  }

  /// Copies a range of the flat buffer, inside the slice, to the host.
  void read(OptimizerPart which, View<Model, 1> weights, Range range, Master* host) {
    backend_->download(view(which, weights).rows(inside(range)).data, host, range.size());
  }

  /// The reverse; new masters go into `weights` too.
  void write(OptimizerPart which, View<Model, 1> weights, Range range, const Master* host) {
    const View<Master, 1> to = view(which, weights).rows(inside(range));
    backend_->upload(host, to.data, range.size());
    if constexpr (has_masters)
      if (which == OptimizerPart::master) convert(*backend_, to, weights.rows(range));
  }

 private:
  struct Run {
    Range range;        // of the flat buffer
    std::size_t first;  // slot; the others have its step count
  };

  /// Steps the masters and rounds the model to them: in one pass where the backend knows how.
  template <class G>
  void step_range(const AdamWStep& step, View<G, 1> gradient, View<Master, 1> masters, Range own,
                  View<Model, 1> model) {
    const View<Master, 1> m = m_.view().rows(own), v = v_.view().rows(own);
    if constexpr (!has_masters) {
      adamw(*backend_, gradient, step, masters, m, v);
    } else if constexpr (requires { adamw(*backend_, gradient, step, masters, m, v, model); }) {
      adamw(*backend_, gradient, step, masters, m, v, model);
    } else {
      adamw(*backend_, gradient, step, masters, m, v);
      convert(*backend_, masters, model);
    }
  }

  static bool is_absent(std::size_t slot, const std::vector<index_t>& absent) {
    return std::find(absent.begin(), absent.end(), index_t(slot)) != absent.end();
  }

  /// The slice's slots that have a gradient; neighbours with one step count are one run, so that a
  /// step is few passes over memory.
  HostVector<Run> runs(const std::vector<index_t>& absent) const {
    HostVector<Run> found;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      const Range range{std::max(slots_[i].offset, slice_.begin),
                        std::min(slots_[i].offset + slots_[i].size, slice_.end)};
      if (range.begin >= range.end || is_absent(i, absent)) continue;
      if (!found.empty() && found.back().range.end == range.begin &&
          steps_[found.back().first] == steps_[i])
        found.back().range.end = range.end;
      else
        found.push_back({range, i});
    }
    return found;
  }

  Range inside(Range range) const {
    expects(slice_.begin <= range.begin && range.end <= slice_.end,
            "AdamW: the range lies outside the slice");
    return {range.begin - slice_.begin, range.end - slice_.begin};
  }

  B* backend_;
  std::vector<ParameterSlot> slots_;
  AdamWOptions options_;
  Range slice_;
  std::vector<index_t> steps_;
  Tensor<B, Master, 1> masters_, m_, v_;
};

}  // namespace dflash
