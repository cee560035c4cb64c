#pragma once

#include <initializer_list>

#include "dflash/core/config.hpp"

namespace dflash {

/// What one rank did through one communicator since it was made. Bytes are those sent to *other*
/// ranks; split, barrier and the checks of arguments move no tensors and are not counted.
/// With n elements of e bytes, P ranks, own rank r and counts c:
///   all_to_all           e * (n - c[r])
///   reduce_scatter_sum   e * (n - c[r])          each rank gets the others' parts and adds them
///   all_gather           e * c[r] * (P - 1)
///   all_reduce_sum       both of the above, with c = n cut into P nearly equal slices
///   broadcast            e * n * (P - 1) on the root, 0 elsewhere
struct Traffic {
  struct Count {
    index_t calls = 0, bytes = 0;

    void add(index_t more) { ++calls, bytes += more; }
    Count& operator+=(const Count& o) {
      calls += o.calls, bytes += o.bytes;
      return *this;
    }
    Count operator-(const Count& o) const { return {calls - o.calls, bytes - o.bytes}; }
    bool operator==(const Count&) const = default;
  };
  Count all_to_all;  // started ones too
  Count all_reduce_sum, reduce_scatter_sum, all_gather, broadcast;

  Count total() const {
    Count sum;
    for (const Count& c : {all_to_all, all_reduce_sum, reduce_scatter_sum, all_gather, broadcast})
      sum += c;
    return sum;
  }
  /// What happened since `o` was read.
  Traffic operator-(const Traffic& o) const {
    return {all_to_all - o.all_to_all, all_reduce_sum - o.all_reduce_sum,
            reduce_scatter_sum - o.reduce_scatter_sum, all_gather - o.all_gather,
            broadcast - o.broadcast};
  }
  Traffic& operator+=(const Traffic& o) {
    all_to_all += o.all_to_all, all_reduce_sum += o.all_reduce_sum;
    reduce_scatter_sum += o.reduce_scatter_sum, all_gather += o.all_gather;
    broadcast += o.broadcast;
    return *this;
  }
  bool operator==(const Traffic&) const = default;
};

}  // namespace dflash
