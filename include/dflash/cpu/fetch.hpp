#pragma once

#include <algorithm>

#include "dflash/core/config.hpp"

namespace dflash::detail {

/// Brings what is needed soon from memory to the second cache level, a share at each of `calls`:
/// `pieces` of `length` elements, `step` apart.
class Fetch {
 public:
  template <class T>
  Fetch(const T* from, index_t pieces, index_t step, index_t length, index_t calls)
      : piece_(reinterpret_cast<const char*>(from)),
        step_(step * index_t(sizeof(T))),
        bytes_(length * index_t(sizeof(T))),
        left_(length > 0 ? pieces : 0),
        each_((pieces * (bytes_ / line + 1)) / std::max<index_t>(calls, 1) + 1) {}
  template <class T>
  Fetch(const T* begin, const T* end, index_t calls) : Fetch(begin, 1, 0, end - begin, calls) {}

  void operator()() {
    for (index_t n = each_; n > 0 && left_ > 0; --n) {
      __builtin_prefetch(piece_ + at_, 0, 2);
      if ((at_ += line) < bytes_) continue;
      piece_ += step_;
      at_ = 0;
      --left_;
    }
  }

 private:
  static constexpr index_t line = 64;
  const char* piece_;
  index_t step_, bytes_, left_, each_, at_ = 0;
};

}  // namespace dflash::detail
