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
    cross_entropy_part_kernel(const RunningRow* run, const float* sum, const T* w,
                              index_t vocabulary, const std::int32_t* label, index_t dim,
                              CrossEntropyPart<float>* part, T* dx) {
  const index_t n = blockIdx.x;
  const RunningRow row = run[n];
  const std::int32_t word = label[n];
  const bool known = word >= 0 && word < vocabulary;
  const float of_label = known ? expf(row.label_logit - row.top) : 0;
  for (index_t d = threadIdx.x; d < dim; d += blockDim.x) {
    float s = sum == nullptr ? 0.0f : sum[n * dim + d];
    if (known) s -= of_label * to_float(w[word * dim + d]);
    store(s, dx + n * dim + d);
  }
  if (threadIdx.x == 0) part[n] = {row.top, float(row.sum), row.label_logit, row.best};
}

template <class T>
__global__ void __launch_bounds__(row_threads)
    cross_entropy_merge_kernel(const T* w, index_t vocabulary, const std::int32_t* label,
                               const float* scale, const float* label_share, index_t dim, T* dx) {
  const index_t n = blockIdx.x;
  const std::int32_t word = label[n];
  const bool known = word >= 0 && word < vocabulary;
  const float factor = scale[n], of_label = label_share[n];
  for (index_t d = threadIdx.x; d < dim; d += blockDim.x) {
    T* const to = dx + n * dim + d;
    float s = to_float(*to) * factor;
    if (known) s += of_label * to_float(w[word * dim + d]);
    store(s, to);
  }
}

/// What becomes of the rows that run_over_logits has finished: their part, not yet divided. Here,
/// where sums are float, the label's share leaves them.
template <class T>
auto part_of_cross_entropy(CudaBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                           View<const std::int32_t, 1> label, View<CrossEntropyPart<float>, 1> part,
                           Out<T, 2> dx) {
  dflash::detail::check_part(x, w, label, part, dx);
  return [=, &backend](Range r, const RunningRow* run, const float* sum) {
    launch(backend.stream(), cross_entropy_part_kernel<T>, unsigned(r.size()), row_threads, 0, run,
           sum, w.data, w.shape[0], label.data + r.begin, dx.shape[1], part.data + r.begin,
           dx.rows(r).data);
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
/// it, dx = sum over the logits but the label's of e^(logit - top) w (written): with the label's
/// share a row that is predicted well would lose the rest when it is rounded. Labels count from the
/// first row of w; one that is none of them lies in another part.
///                                                 x, dx (R, H)  w (V, H)  label, part (R)
template <class T>
void linear_cross_entropy_part(CudaBackend<T>& backend, In<T, 2> x, In<T, 2> w,
                               View<const std::int32_t, 1> label,
                               View<CrossEntropyPart<float>, 1> part, Out<T, 2> dx) {
  cuda::detail::linear_cross_entropy_part<T>(backend, x, w, label, part, dx, {});
}

/// dx(n) = scale(n) dx(n), and label_share(n) w(label(n)) more where the label is a row of w: makes
/// the gradients of parts those of the whole cross entropy, to be summed. A label's share is its
/// probability less 1.
///                                    w (V, H)  label, scale, label_share (R)  dx (R, H)
template <class T>
void linear_cross_entropy_merge(CudaBackend<T>& backend, In<T, 2> w,
                                View<const std::int32_t, 1> label, In<float, 1> scale,
                                In<float, 1> label_share, Out<T, 2> dx) {
  detail::check_merge(w, label, scale, label_share, dx);
  cuda::launch(backend.stream(), cuda::detail::cross_entropy_merge_kernel<T>, unsigned(dx.shape[0]),
               cuda::detail::row_threads, 0, w.data, w.shape[0], label.data, scale.data,
               label_share.data, dx.shape[1], dx.data);
}

}  // namespace dflash
