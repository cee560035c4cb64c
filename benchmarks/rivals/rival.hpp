#pragma once

#include <string>
#include <vector>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/config.hpp"

namespace dflash_benchmark {

using dflash::bfloat16;
using dflash::index_t;

/// c = op(a) op(b), or c += it; all row by row.             op(a) (rows, k)  op(b) (k, columns)
template <class T>
struct Product {
  bool a_transposed, b_transposed, add;
  index_t rows, columns, k;
  const T *a, *b;
  float* c;

  index_t a_row() const { return a_transposed ? rows : k; }
  index_t b_row() const { return b_transposed ? k : columns; }
};

/// Another library's matrix product. Those that the build found enter themselves in the list.
struct Rival {
  std::string name;
  void (*use_threads)(int);
  void (*multiply)(const Product<float>&);
  void (*multiply_bf16)(const Product<bfloat16>&) = nullptr;  // of factors that are bf16 already
  void (*multiply_rounded)(const Product<float>&) = nullptr;  // of factors that it rounds to bf16
};

inline std::vector<Rival>& rivals() {
  static std::vector<Rival> all;
  return all;
}

struct Enter {
  explicit Enter(const Rival& rival) { rivals().push_back(rival); }
};

}  // namespace dflash_benchmark
