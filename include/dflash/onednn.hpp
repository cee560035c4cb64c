#pragma once

#include <dnnl.h>
#include <omp.h>

#include <algorithm>

#include "dflash/cpu.hpp"

namespace dflash {

/// The CPU backend with oneDNN's products in the linear layers; frozen weights and all else are
/// CpuBackend's own. oneDNN does not promise that the bits of a row are the same among other rows
/// or threads: what dflash says of equality bit for bit does not hold here.
class OnednnBackend : public CpuBackend<float> {
 public:
  explicit OnednnBackend(int threads = 1) : CpuBackend<float>(threads) {}
};

namespace detail {

/// c = op(a) op(b) or c += it, as oneDNN computes.  op(a) (M, k)  op(b) (k, N)  c (M, N)
inline void onednn_gemm(OnednnBackend& backend, bool a_transposed, bool b_transposed,
                        In<float, 2> a, In<float, 2> b, index_t k, Out<float, 2> c, bool add) {
  if (c.size() == 0) return;
  if (k == 0) {
    if (!add) std::fill_n(c.data, c.size(), 0.0f);
    return;
  }
  omp_set_num_threads(backend.threads());
  const dnnl_status_t status = dnnl_sgemm(
      a_transposed ? 'T' : 'N', b_transposed ? 'T' : 'N', c.shape[0], c.shape[1], k, 1.0f, a.data,
      a.shape[1], b.data, b.shape[1], add ? 1.0f : 0.0f, c.data, c.shape[1]);
  expects(status == dnnl_success, "OnednnBackend: oneDNN refuses the product");
}

/// Rows in float, which lie in `room` if they were bfloat16.
inline In<float, 2> widened(OnednnBackend& backend, InRows<float> rows,
                            Tensor<OnednnBackend, float, 2>& room) {
  if (!rows.narrow()) return rows;
  room = Tensor<OnednnBackend, float, 2>(backend, rows.shape);
  rows.visit([&](const auto& narrow) { convert(backend, narrow, room.view()); });
  return room.view();
}

}  // namespace detail

/// y = x w^T.                                              x (N, I)  w (O, I)  y (N, O)
inline void linear(OnednnBackend& backend, InRows<float> x, In<float, 2> w, Out<float, 2> y) {
  expects(x.shape[1] == w.shape[1] && y.shape[0] == x.shape[0] && y.shape[1] == w.shape[0],
          "linear: shapes differ");
  Tensor<OnednnBackend, float, 2> room;
  detail::onednn_gemm(backend, false, true, detail::widened(backend, x, room), w, x.shape[1], y,
                      false);
}

/// dx += dy w, or = it.                                           dy (N, O)  w (O, I)  dx (N, I)
inline void linear_backward_input(OnednnBackend& backend, InRows<float> dy, In<float, 2> w,
                                  Out<float, 2> dx, Result result = Result::added) {
  expects(dy.shape[1] == w.shape[0] && dx.shape[0] == dy.shape[0] && dx.shape[1] == w.shape[1],
          "linear_backward_input: shapes differ");
  Tensor<OnednnBackend, float, 2> room;
  detail::onednn_gemm(backend, false, false, detail::widened(backend, dy, room), w, dy.shape[1], dx,
                      result == Result::added);
}

/// dw += dy^T x, or = it.                                         dy (N, O)  x (N, I)  dw (O, I)
inline void linear_backward_weight(OnednnBackend& backend, InRows<float> dy, InRows<float> x,
                                   Out<float, 2> dw, Result result = Result::added) {
  expects(dy.shape[0] == x.shape[0] && dw.shape[0] == dy.shape[1] && dw.shape[1] == x.shape[1],
          "linear_backward_weight: shapes differ");
  Tensor<OnednnBackend, float, 2> dy_room, x_room;
  detail::onednn_gemm(backend, true, false, detail::widened(backend, dy, dy_room),
                      detail::widened(backend, x, x_room), x.shape[0], dw, result == Result::added);
}

static_assert(Backend<OnednnBackend>);
static_assert(Operations<OnednnBackend>);

}  // namespace dflash
