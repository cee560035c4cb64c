#pragma once

#include <algorithm>
#include <memory>

#include "dflash/core/backend.hpp"

namespace dflash {

/// Host memory without arithmetic: what communicators move when they only tell each other numbers.
struct HostMemory {
  using value_type = float;
  using accumulator_type = float;
  static constexpr bool host_memory = true;
  struct FrozenMatrix {};

  template <class U>
  struct Buffer {
    std::unique_ptr<U[]> elements;
    U* data() { return elements.get(); }
  };
  template <class U>
  Buffer<U> allocate(index_t n) {
    return {std::make_unique_for_overwrite<U[]>(static_cast<std::size_t>(n))};
  }
  template <class U>
  void upload(const U* from, U* to, index_t n) {
    std::copy_n(from, n, to);
  }
  template <class U>
  void download(const U* from, U* to, index_t n) {
    std::copy_n(from, n, to);
  }
  template <class U>
  void copy(const U* from, U* to, index_t n) {
    std::copy_n(from, n, to);
  }
  void synchronize() {}
};

static_assert(Backend<HostMemory>);

}  // namespace dflash
