#include <cblas.h>

#include "rivals/rival.hpp"

namespace {

using namespace dflash_benchmark;

void multiply(const Product<float>& p) {
  const auto form = [](bool transposed) { return transposed ? CblasTrans : CblasNoTrans; };
  cblas_sgemm(CblasRowMajor, form(p.a_transposed), form(p.b_transposed), int(p.rows),
              int(p.columns), int(p.k), 1, p.a, int(p.a_row()), p.b, int(p.b_row()), float(p.add),
              p.c, int(p.columns));
}

const Enter enter({"OpenBLAS", openblas_set_num_threads, multiply});

}  // namespace
