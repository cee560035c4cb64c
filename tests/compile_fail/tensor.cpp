// One section at a time is defined; each must fail to compile, and the file without any must pass.
#include "dflash/core/tensor.hpp"

#include "dflash/cpu.hpp"

using namespace dflash;

void use(CpuBackend<float>& cpu) {
  Tensor<CpuBackend<float>, float, 2> a(cpu, {2, 3});
  const auto& frozen = a;
  In<float, 2> read = frozen.view();
  (void)read;
#if defined(COPY_OF_A_TENSOR)
  Tensor<CpuBackend<float>, float, 2> b = a;
#elif defined(NOT_A_BACKEND)
  Tensor<int, float, 2> b;
#elif defined(WRITE_INTO_CONST)
  Out<float, 2> write = frozen.view();
#elif defined(WRONG_RANK)
  In<float, 1> flat = a.view();
#elif defined(BACKEND_OF_INTEGERS)
  CpuBackend<int> integers;
#endif
}
