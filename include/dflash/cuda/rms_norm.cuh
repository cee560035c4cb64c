#pragma once

#include <algorithm>
#include <type_traits>

#include "dflash/core/tensor.hpp"
#include "dflash/cuda/ahead_ring.cuh"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/column_sums.cuh"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/row_shape.cuh"
#include "dflash/cuda/team_sums.cuh"
#include "dflash/cuda/vector.cuh"

namespace dflash {

namespace cuda::detail {

/// How many rows a team normalises at once: each thread has four vectors on their way.
template <int vectors>
inline constexpr int rows_at_once = vectors > 0 ? 4 / vectors : 1;

/// Each team its rows, which it holds as they lie in memory.
template <int vectors, class Team, class T>
__global__ void __launch_bounds__(most_row_threads)
    rms_norm_kernel(const T* x, const T* scale, float eps, index_t rows, index_t columns, T* y,
                    float* rstd) {
  constexpr int at_once = rows_at_once<vectors>;
  using Row = HeldRow<vectors>;
  const int teams = Team::in_block(int(blockDim.x));
  const index_t first = index_t(blockIdx.x) * teams * at_once + Team::index();
  const auto mine = [=](int k) { return first + k * teams < rows ? columns : 0; };
  Packed<T> held[at_once][vectors] = {};
  float r[at_once];
#pragma unroll
  for (int k = 0; k < at_once; ++k)
    Row::template each<Team>(
        mine(k), [&](int i, index_t c) { held[k][i].read(x + (first + k * teams) * columns + c); });
#pragma unroll
  for (int k = 0; k < at_once; ++k) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      float v[wide];
      held[k][i].numbers(v);
#pragma unroll
      for (int j = 0; j < wide; ++j) sum += v[j] * v[j];
    }
    static_assert(at_once == 1 || !std::is_same_v<Team, BlockTeam>);  // one place for the sum
    const float mean = Team::sum(sum, shared_memory<float>()) / float(columns);
    r[k] = 1.0f / sqrtf(mean + eps);
  }
#pragma unroll
  for (int k = 0; k < at_once; ++k) {
    const index_t n = first + k * teams;
    Row::template each<Team>(mine(k), [&](int i, index_t c) {
      float v[wide], s[wide];
      held[k][i].numbers(v);
      load<wide>(scale + c, s);
#pragma unroll
      for (int j = 0; j < wide; ++j) v[j] = v[j] * r[k] * s[j];
      store<wide>(v, y + n * columns + c);
    });
    if (n < rows && Team::member() == 0) rstd[n] = r[k];
  }
}

template <class Team, class T>
__global__ void __launch_bounds__(most_row_threads)
    rms_norm_any_kernel(const T* x, const T* scale, float eps, index_t rows, index_t columns, T* y,
                        float* rstd) {
  const index_t n = index_t(blockIdx.x) * Team::in_block(int(blockDim.x)) + Team::index();
  const index_t at = n * columns, mine = n < rows ? columns : 0;
  float sum = 0;
  for (index_t c = Team::member(); c < mine; c += Team::size())
    sum += to_float(x[at + c]) * to_float(x[at + c]);
  const float mean = Team::sum(sum, shared_memory<float>()) / float(columns);
  const float r = 1.0f / sqrtf(mean + eps);
  for (index_t c = Team::member(); c < mine; c += Team::size())
    store(to_float(x[at + c]) * r * to_float(scale[c]), y + at + c);
  if (n < rows && Team::member() == 0) rstd[n] = r;
}

/// Each block a part of `each` rows; part(p, c) is what these add to dscale(c).
template <int vectors, class Team, class T>
__global__ void __launch_bounds__(most_row_threads, sizeof(T) * vectors <= 2 ? 2 : 1)
    rms_norm_backward_kernel(const T* x, const T* scale, const float* rstd, const T* dy,
                             index_t rows, index_t each, index_t columns, T* dx, float* part) {
  using Row = HeldRow<vectors>;
  using Ring = AheadRing<3, vectors, T>;
  Ring ring(TeamSums::before());
  const int teams = Team::in_block(int(blockDim.x));
  const index_t p = blockIdx.x, first = p * each, end = first + each < rows ? first + each : rows;
  const auto begin = [&](index_t turn) {
    const index_t n = first + turn * teams + Team::index();
    Row::template each<Team>(n < end ? columns : 0, [&](int i, index_t c) {
      ring.begin(turn, 0, i, x + n * columns + c);
      ring.begin(turn, 1, i, dy + n * columns + c);
      ring.begin(turn, 2, i, dx + n * columns + c);
    });
    Ring::close_turn();
  };
  for (int turn = 0; turn < Ring::turns - 1; ++turn) begin(turn);
  Packed<T> scales[vectors] = {};
  Row::template each<Team>(columns, [&](int i, index_t c) { scales[i].read(scale + c); });
  float sums[vectors][wide] = {};
  for (index_t turn = 0; first + turn * teams < end; ++turn) {
    const index_t n = first + turn * teams + Team::index(), mine = n < end ? columns : 0;
    const float r = n < end ? rstd[n] : 0;
    Ring::wait();
    float dot = 0;
    Row::template each<Team>(mine, [&](int i, index_t) {
      float in[wide], out[wide], s[wide];
      ring.numbers(turn, 0, i, in), ring.numbers(turn, 1, i, out), scales[i].numbers(s);
#pragma unroll
      for (int j = 0; j < wide; ++j) dot += in[j] * out[j] * s[j];
    });
    begin(turn + Ring::turns - 1);
    dot = Team::sum(dot, TeamSums::of_warps(turn));
    const float shrink = dot / float(columns) * r * r * r;
    Row::template each<Team>(mine, [&](int i, index_t c) {
      float in[wide], out[wide], s[wide], to[wide];
      ring.numbers(turn, 0, i, in), ring.numbers(turn, 1, i, out), scales[i].numbers(s);
      ring.numbers(turn, 2, i, to);
#pragma unroll
      for (int j = 0; j < wide; ++j) {
        to[j] += r * out[j] * s[j] - shrink * in[j];
        sums[i][j] += out[j] * in[j] * r;
      }
      store<wide>(to, dx + n * columns + c);
    });
  }
  copy_async_wait<0>();
  __syncthreads();  // the ring's place is that of the sums
  float* const own = TeamSums::of_team(Team::index(), columns);
  Row::template each<Team>(columns, [&](int i, index_t c) { store<wide>(sums[i], own + c); });
  TeamSums::join(teams, columns, part + p * columns);
}

template <class Team, class T>
__global__ void __launch_bounds__(most_row_threads)
    rms_norm_any_backward_kernel(const T* x, const T* scale, const float* rstd, const T* dy,
                                 index_t rows, index_t each, index_t columns, T* dx, float* part) {
  const int teams = Team::in_block(int(blockDim.x));
  const index_t p = blockIdx.x, end = (p + 1) * each < rows ? (p + 1) * each : rows;
  float* const own = TeamSums::of_team(Team::index(), columns);
  for (index_t c = Team::member(); c < columns; c += Team::size()) own[c] = 0;
  for (index_t first = p * each, turn = 0; first < end; first += teams, ++turn) {
    const index_t n = first + Team::index(), at = n * columns, mine = n < end ? columns : 0;
    const float r = n < end ? rstd[n] : 0;
    float dot = 0;
    for (index_t c = Team::member(); c < mine; c += Team::size())
      dot += to_float(x[at + c]) * to_float(dy[at + c]) * to_float(scale[c]);
    dot = Team::sum(dot, TeamSums::of_warps(turn));
    const float shrink = dot / float(columns) * r * r * r;
    for (index_t c = Team::member(); c < mine; c += Team::size()) {
      const float in = to_float(x[at + c]), out = to_float(dy[at + c]);
      store(to_float(dx[at + c]) + (r * out * to_float(scale[c]) - shrink * in), dx + at + c);
      own[c] += out * in * r;
    }
  }
  TeamSums::join(teams, columns, part + p * columns);
}

template <int vectors, class Team, class T>
constexpr auto rms_norm_for() {
  if constexpr (vectors > 0)
    return rms_norm_kernel<vectors, Team, T>;
  else
    return rms_norm_any_kernel<Team, T>;
}
template <int vectors, class T>
constexpr std::size_t ring_bytes(int threads) {
  if constexpr (vectors > 0)
    return AheadRing<3, vectors, T>::bytes(threads);
  else
    return 0;
}
template <int vectors, class Team, class T>
constexpr auto rms_norm_backward_for() {
  if constexpr (vectors > 0)
    return rms_norm_backward_kernel<vectors, Team, T>;
  else
    return rms_norm_any_backward_kernel<Team, T>;
}

}  // namespace cuda::detail

/// y = x rstd scale with rstd = 1 / sqrt(mean(x^2) + eps), row by row (arXiv:1910.07467). y may be
/// x.                                                      x, y (N, C)  scale (C)  rstd (N)
template <class T>
void rms_norm(CudaBackend<T>& backend, In<T, 2> x, In<T, 1> scale, float eps, Out<T, 2> y,
              Out<float, 1> rstd) {
  const index_t rows = x.shape[0], columns = x.shape[1];
  expects(y.shape[0] == rows && y.shape[1] == columns && scale.shape[0] == columns &&
              rstd.shape[0] == rows,
          "rms_norm: shapes differ");
  cuda::for_row_shape<4>(
      cuda::are_vectors<T>(columns, {x.data, scale.data, y.data}), columns,
      [&]<int vectors, class Team>(cuda::HeldRow<vectors>, Team, int threads) {
        cuda::launch(
            backend.stream(), cuda::detail::rms_norm_for<vectors, Team, T>(),
            cuda::blocks_for(rows, Team::in_block(threads) * cuda::detail::rows_at_once<vectors>),
            unsigned(threads), cuda::warp_size * sizeof(float), x.data, scale.data, eps, rows,
            columns, y.data, rstd.data);
      });
}

/// Adds to dx and dscale.
template <class T>
void rms_norm_backward(CudaBackend<T>& backend, In<T, 2> x, In<T, 1> scale, In<float, 1> rstd,
                       In<T, 2> dy, Out<T, 2> dx, Out<float, 1> dscale) {
  const index_t rows = x.shape[0], columns = x.shape[1];
  expects(dy.shape[0] == rows && dy.shape[1] == columns && dx.shape[0] == rows &&
              dx.shape[1] == columns && scale.shape[0] == columns && dscale.shape[0] == columns &&
              rstd.shape[0] == rows,
          "rms_norm_backward: shapes differ");
  if (rows == 0 || columns == 0) return;
  // Two vectors of float for each of 512 threads, and the rows ahead, are more than sm_80 has.
  const auto for_row_shape = [](auto&&... how) {
    if constexpr (sizeof(T) > 2)
      cuda::for_row_shape<1>(how...);
    else
      cuda::for_row_shape<1, 2>(how...);
  };
  for_row_shape(
      cuda::are_vectors<T>(columns, {x.data, scale.data, dy.data, dx.data}), columns,
      [&]<int vectors, class Team>(cuda::HeldRow<vectors>, Team, int threads) {
        const int teams = Team::in_block(threads);
        const cuda::RowParts parts(rows, std::max(4, teams), 256);
        auto part = backend.template allocate<float>(parts.count * columns);
        cuda::launch(
            backend.stream(), cuda::detail::rms_norm_backward_for<vectors, Team, T>(),
            unsigned(parts.count), unsigned(threads),
            cuda::TeamSums::bytes(teams, columns, cuda::detail::ring_bytes<vectors, T>(threads)),
            x.data, scale.data, rstd.data, dy.data, rows, parts.each, columns, dx.data,
            part.data());
        cuda::add_parts(backend, part.data(), parts.count, columns, dscale.data);
      });
}

}  // namespace dflash
