#pragma once

#include <algorithm>

#include "dflash/core/head_places.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/norm_gradient.hpp"
#include "dflash/cpu/rms_norm.hpp"
#include "dflash/cpu/rope.hpp"
#include "dflash/cpu/row_sums.hpp"
#include "dflash/cpu/vector_math.hpp"

namespace dflash {

/// Each head of each row of x, normalised as by rms_norm and then turned as by rope by its row's
/// angles, in every part of y that takes it.
///                     x (N, heads, D)  w (D)  cos, sin (N, D / 2)  rstd (N * heads)
template <class T>
void rms_norm_rope(CpuBackend<T>& backend, In<T, 3> x, In<T, 1> w, std::type_identity_t<T> eps,
                   In<T, 2> cos, In<T, 2> sin, HeadPlaces<T> y, Out<T, 1> rstd) {
  const index_t heads = x.shape[1], dim = x.shape[2], half = dim / 2;
  detail::expect_turned_heads<T>(x, w, cos, sin, rstd.shape[0]);
  detail::expect_places<T>(y, heads);
  backend.for_parts(x.shape[0], 3 * heads * dim, [&](Range rows) {
    detail::on_path(
        backend.path(), [ =, path = backend.path() ]() __attribute__((always_inline)) {
          for (index_t n = rows.begin; n < rows.end; ++n)
            for (index_t h = 0; h < heads; ++h) {
              const index_t row = n * heads + h;
              const T* const from = x.data + row * dim;
              const T r = rstd.data[row] = detail::rstd_of_row(dim, from, eps);
              const T* done = nullptr;
              for (const HeadPart<T>& part : y) {
                if (h < part.first || h >= part.first + part.count) continue;
                T* const to = part.data + (n * part.count + h - part.first) * dim;
                if (done != nullptr) {
                  std::copy_n(done, dim, to);
                  continue;
                }
                detail::scale_row(path, dim, from, r, w.data, to);
                detail::turn_head(half, cos.data + n * half, sin.data + n * half, T(1), to);
                done = to;
              }
            }
        });
  });
}

/// From dy, the gradient of the turned heads: dx written, dw added. dx may be dy.
///                     x, dy, dx (N, heads, D)  w, dw (D)  rstd (N * heads)  cos, sin (N, D / 2)
template <class T>
void rms_norm_rope_backward(CpuBackend<T>& backend, In<T, 3> x, In<T, 1> w, In<T, 1> rstd,
                            In<T, 2> cos, In<T, 2> sin, In<T, 3> dy, Out<T, 3> dx, Out<T, 1> dw) {
  const index_t heads = x.shape[1], dim = x.shape[2], half = dim / 2;
  detail::expect_turned_heads<T>(x, w, cos, sin, rstd.shape[0]);
  expects(dy.size() == x.size() && dx.size() == x.size() && dw.shape[0] == dim,
          "rms_norm_rope_backward: shapes differ");
  detail::add_row_sums(backend, rstd.shape[0], dim, dw.data, [&](Range part, T* sum) {
    detail::on_path(
        backend.path(), [=]() __attribute__((always_inline)) {
          const auto turned_back = [=](index_t row) __attribute__((always_inline)) {
            const T* const out = dy.data + row * dim;
            T* const to = dx.data + row * dim;
            if (to != out) std::copy_n(out, dim, to);
            const index_t angles = row / heads * half;
            detail::turn_head(half, cos.data + angles, sin.data + angles, T(-1), to);
            return detail::NormRow<T>{x.data + row * dim, to, to, rstd.data[row]};
          };
          detail::norm_gradient<false>(part, dim, w.data, sum, turned_back);
        });
  });
}

}  // namespace dflash
