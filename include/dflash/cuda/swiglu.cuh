#pragma once

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/each.cuh"

namespace dflash {

namespace cuda::detail {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Swiglu {
  __device__ void operator()(float gate, float up, float& y) const {
    y = gate * sigmoid(gate) * up;
  }
};
struct SwigluBackward {
  __device__ void operator()(float gate, float up, float dy, float& dgate, float& dup) const {
    const float s = sigmoid(gate);
    dgate = dy * up * s * (1 + gate * (1 - s));
    dup = dy * gate * s;
  }
};

}  // namespace cuda::detail

/// y = silu(gate) up (arXiv:2002.05202). y may be gate or up.              all (N, I)
template <class T>
void swiglu(CudaBackend<T>& backend, In<T, 2> gate, In<T, 2> up, Out<T, 2> y) {
  expects(gate.size() == y.size() && up.size() == y.size(), "swiglu: shapes differ");
  cuda::each(backend.stream(), y.size(), cuda::detail::Swiglu{}, cuda::read(gate.data),
             cuda::read(up.data), cuda::write(y.data));
}

/// Writes dgate and dup, which may be dy.                                  all (N, I)
template <class T>
void swiglu_backward(CudaBackend<T>& backend, In<T, 2> gate, In<T, 2> up, In<T, 2> dy,
                     Out<T, 2> dgate, Out<T, 2> dup) {
  const index_t size = dy.size();
  expects(gate.size() == size && up.size() == size && dgate.size() == size && dup.size() == size,
          "swiglu_backward: shapes differ");
  cuda::each(backend.stream(), size, cuda::detail::SwigluBackward{}, cuda::read(gate.data),
             cuda::read(up.data), cuda::read(dy.data), cuda::write(dgate.data),
             cuda::write(dup.data));
}

}  // namespace dflash
