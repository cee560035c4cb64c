#include <Eigen/Core>

#include "rivals/rival.hpp"

namespace {

using namespace dflash_benchmark;

void multiply(const Product<float>& p) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Map = Eigen::Map<const Matrix>;
  Eigen::Map<Matrix> c(p.c, p.rows, p.columns);
  const auto store = [&](const auto& product) {
    if (p.add)
      c.noalias() += product;
    else
      c.noalias() = product;
  };
  if (p.a_transposed)
    store(Map(p.a, p.k, p.rows).transpose() * Map(p.b, p.k, p.columns));
  else if (p.b_transposed)
    store(Map(p.a, p.rows, p.k) * Map(p.b, p.columns, p.k).transpose());
  else
    store(Map(p.a, p.rows, p.k) * Map(p.b, p.k, p.columns));
}

const Enter enter({"Eigen", Eigen::setNbThreads, multiply});

}  // namespace
