#pragma once

#include <cstdint>

#include "dflash/core/cross_entropy_part.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/linear_cross_entropy.cuh"

namespace dflash {

namespace cuda::detail {

template <class T>
__global__ void __launch_bounds__(row_threads)
    cross_entropy_part_kernel(const RunningRow* run, const float* sum, index_t dim,
                              CrossEntropyPart<float>* part, T* dx) {
  const index_t n = blockIdx.x;
  for (index_t d = threadIdx.x; d < dim; d += blockDim.x)
    store(sum == nullptr ? 0.0f : sum[n * dim + d], dx + n * dim + d);
  if (threadIdx.x == 0) part[n] = {run[n].top, float(run[n].sum), run[n].label_logit, run[n].best};
}

template <class T>
__global__ void __launch_bounds__(row_threads)
    cross_entropy_merge_kernel(const T* w, index_t vocabulary, const std::int32_t* label,
                               const float* scale, index_t dim, T* dx) {
  const index_t n = blockIdx.x;
  const std::int32_t word = label[n];
  const bool known = word >= 0 && word < vocabulary;
  const float factor = scale[n];
  for (index_t d = threadIdx.x; d < dim; d += blockDim.x) {
    T* const to = dx + n * dim + d;
    store(to_float(*to) * factor - (known ? to_float(w[word * dim + d]) : 0.0f), to);
  }
}

/// What becomes of the rows that run_over_logits has finished: their part, not yet divided.
template <class T>
auto part_of_cross_entropy(CudaBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                           View<const std::int32_t, 1> label, View<CrossEntropyPart<float>, 1> part,
                           Out<T, 2> dx) {
  const index_t rows = x.shape[0], dim = x.shape[1];
  expects(w.shape[1] == dim && label.shape[0] == rows && part.shape[0] == rows &&
              dx.shape[0] == rows && dx.shape[1] == dim,
          "linear_cross_entropy_part: shapes differ");
  return [=, &backend](Range r, const RunningRow* run, const float* sum) {
    launch(backend.stream(), cross_entropy_part_kernel<T>, unsigned(r.size()), row_threads, 0, run,
           sum, dim, part.data + r.begin, dx.rows(r).data);
  };
}

template <class T>
void linear_cross_entropy_part(CudaBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                               View<const std::int32_t, 1> label,
                               View<CrossEntropyPart<float>, 1> part, Out<T, 2> dx,
                               CrossEntropyTile tile) {
  const auto finish = part_of_cross_entropy(backend, x, w, label, part, dx);
  run_over_logits(backend, x, w, label, nullptr, tile, finish);
}

}  // namespace cuda::detail

/// The part of each row's cross entropy that rows w of a head make, and the gradient that goes with
/// it, dx = sum over the logits of e^(logit - top) w (written). Labels count from the first row of
/// w; one that is none of them lies in another part.
///                                                 x, dx (R, H)  w (V, H)  label, part (R)
template <class T>
void linear_cross_entropy_part(CudaBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                               View<const std::int32_t, 1> label,
                               View<CrossEntropyPart<float>, 1> part, Out<T, 2> dx) {
  cuda::detail::linear_cross_entropy_part<T>(backend, x, w, label, part, dx, {});
}

/// dx(n) = scale(n) dx(n), less w(label(n)) where the label is a row of w: makes the gradients of
/// parts those of the whole cross entropy, to be summed.
///                                                 w (V, H)  label, scale (R)  dx (R, H)
template <class T>
void linear_cross_entropy_merge(CudaBackend<T>& backend, In<T, 2> w,
                                View<const std::int32_t, 1> label, In<float, 1> scale,
                                Out<T, 2> dx) {
  expects(
      label.shape[0] == dx.shape[0] && scale.shape[0] == dx.shape[0] && w.shape[1] == dx.shape[1],
      "linear_cross_entropy_merge: shapes differ");
  cuda::launch(backend.stream(), cuda::detail::cross_entropy_merge_kernel<T>, unsigned(dx.shape[0]),
               cuda::detail::row_threads, 0, w.data, w.shape[0], label.data, scale.data,
               dx.shape[1], dx.data);
}

}  // namespace dflash
