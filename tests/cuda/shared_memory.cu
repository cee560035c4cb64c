// Prints the shared memory of a block of each attention kernel: it is an argument of the launch, of
// which the compiler knows nothing. Runs without a GPU. See nvcc.sh.

#include <cstddef>
#include <cstdio>

#include "dflash/cuda/attention.cuh"
#include "dflash/cuda/attention_backward.cuh"

namespace {

using namespace dflash::cuda;

void row(const char* kernel, int dim, std::size_t bytes) {
  std::printf("%12zu  %s<%d>\n", bytes, kernel, dim);
}

template <int D>
void of_warps() {
  row("attention_kernel", D, sizeof(typename ForwardCut<D>::Shared));
  row("attention_query_gradient_kernel", D, sizeof(typename QueryGradientCut<D>::Shared));
  row("attention_key_gradient_kernel", D, sizeof(typename KeyGradientCut<D>::Shared));
  row("attention_float_kernel", D, sizeof(FloatForwardShared<D>));
  row("attention_float_query_gradient_kernel", D, sizeof(FloatBackwardShared<D>));
  row("attention_float_key_gradient_kernel", D, sizeof(FloatBackwardShared<D>));
}
template <int D>
void of_groups() {
  row("attention_hopper_kernel", D, sizeof(HopperForwardRing<D>));
  row("query_gradient_hopper_kernel", D, sizeof(HopperQueryShared<D>));
  row("key_gradient_hopper_kernel", D, sizeof(HopperKeyShared<D>));
}

}  // namespace

int main() {
  std::printf("shared bytes  kernel of attention\n");
  of_warps<64>(), of_warps<96>(), of_warps<128>(), of_warps<256>();
  of_groups<64>(), of_groups<128>();
}
