#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "dflash/text/jinja/value.hpp"

namespace dflash::jinja {

/// The names that a block of a template sees.
struct Scope {
  Map names;
  std::shared_ptr<Scope> parent;

  const Value* find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->parent.get())
      if (const Value* found = scope->names.find(name)) return found;
    return nullptr;
  }
};

/// What one rendering has made so far, and how much more it may.
struct Rendering {
  std::string* out = nullptr;  // where output goes now
  int line = 1;                // of what is being evaluated
  int depth = 0;
  long steps = 0;

  // Far above what a conversation needs; they end templates that would not end.
  static constexpr int deepest = 1000;
  static constexpr long most_steps = 2'000'000;
  static constexpr std::size_t longest_text = std::size_t(1) << 28;

  void print(std::string_view text) {
    if (out->size() + text.size() > longest_text) fail("the template makes too long a text");
    *out += text;
  }
  void step() {
    if (++steps > most_steps) fail("the template does not come to an end");
  }
};

/// Where evaluation stands.
struct Frame {
  Rendering& rendering;
  std::shared_ptr<Scope> scope;

  /// A frame for an inner block: sees these names, keeps its own to itself.
  Frame inner() const { return {rendering, std::make_shared<Scope>(Scope{{}, scope})}; }
};

/// Counts how deep evaluation has gone.
class Deeper {
 public:
  explicit Deeper(Rendering& rendering) : rendering_(rendering) {
    if (rendering_.depth >= Rendering::deepest) fail("the template is nested too deeply");
    ++rendering_.depth;
  }
  ~Deeper() { --rendering_.depth; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;

 private:
  Rendering& rendering_;
};

}  // namespace dflash::jinja
