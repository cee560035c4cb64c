#pragma once

#include <algorithm>

#include "dflash/core/head_places.hpp"
#include "dflash/core/tensor.hpp"
#include "dflash/cuda/ahead_ring.cuh"
#include "dflash/cuda/backend.hpp"
#include "dflash/cuda/column_sums.cuh"
#include "dflash/cuda/each.cuh"
#include "dflash/cuda/launch.cuh"
#include "dflash/cuda/row_shape.cuh"
#include "dflash/cuda/team.cuh"
#include "dflash/cuda/team_sums.cuh"
#include "dflash/cuda/vector.cuh"

namespace dflash {

namespace cuda::detail {

inline constexpr int head_threads = 128;
inline constexpr index_t largest_turned_head = 256;

/// `width` numbers as they lie in memory.
template <int width, class T>
struct Kept {
  Packed<T> packed = {};
  __device__ __forceinline__ void read(const T* from) { packed.read(from); }
  __device__ __forceinline__ void numbers(float (&to)[width]) const { packed.numbers(to); }
};
template <class T>
struct Kept<1, T> {
  float number = 0;
  __device__ __forceinline__ void read(const T* from) { number = to_float(*from); }
  __device__ __forceinline__ void numbers(float (&to)[1]) const { to[0] = number; }
};

/// The pairs (i, i + half) of a head that a thread of a team holds: `count` vectors of `width` in
/// each half.
template <int width_, int lanes, int count_>
struct HeldPairs {
  using Team = LaneTeam<lanes>;
  static constexpr int width = width_, count = count_, lanes_of_team = lanes;

  /// The same places of two arrays, such as both halves of a head, or cosines and sines.
  template <class T>
  struct Stored {
    Kept<width, T> low[count], high[count];
    __device__ __forceinline__ void read(index_t half, const T* lower, const T* upper) {
      each(half, [&](int k, index_t i) {
        low[k].read(lower + i);
        high[k].read(upper + i);
      });
    }
    __device__ __forceinline__ HeldPairs numbers() const {
      HeldPairs pairs;
#pragma unroll
      for (int k = 0; k < count; ++k) low[k].numbers(pairs.low[k]), high[k].numbers(pairs.high[k]);
      return pairs;
    }
  };

  float low[count][width] = {}, high[count][width] = {};

  /// f(k, i) for each vector k of this thread, the one of pairs i to i + width.
  template <class F>
  __device__ __forceinline__ static void each(index_t half, F f) {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const int i = (k * lanes + Team::member()) * width;
      if (i < half) f(k, index_t(i));
    }
  }
  template <class T>
  __device__ __forceinline__ void write(index_t half, T* head) const {
    each(half, [&](int k, index_t i) {
      store<width>(low[k], head + i);
      store<width>(high[k], head + half + i);
    });
  }
  /// The pairs turned by their row's angles, times sign.
  template <class T>
  __device__ __forceinline__ void turn(const Stored<T>& angles, float sign) {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      float c[width], s[width];
      angles.low[k].numbers(c), angles.high[k].numbers(s);
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const float a = low[k][j], b = high[k][j], by = sign * s[j];
        low[k][j] = a * c[j] - b * by;
        high[k][j] = b * c[j] + a * by;
      }
    }
  }
  /// f(a number, its counterparts in `others`) for all of this thread.
  template <class F, class... Others>
  __device__ __forceinline__ void with(F f, const Others&... others) {
#pragma unroll
    for (int k = 0; k < count; ++k)
#pragma unroll
      for (int j = 0; j < width; ++j) {
        f(low[k][j], others.low[k][j]...);
        f(high[k][j], others.high[k][j]...);
      }
  }
};

/// As many parts as one launch writes.
template <class T>
struct HeadParts {
  static constexpr int most = 64;
  HeadPart<T> part[most];
  int count;
};

/// Heads of a row that a team takes at once: they share its angles.
inline constexpr int heads_at_once = 4;

/// A team for each group of heads of a row.
template <class Pairs, class T>
__global__ void __launch_bounds__(head_threads)
    rms_norm_rope_kernel(const T* x, const T* w, float eps, const T* cosines, const T* sines,
                         index_t rows, index_t heads, index_t half, const HeadParts<T> parts,
                         float* rstd) {
  using Team = typename Pairs::Team;
  constexpr int teams = head_threads / Pairs::lanes_of_team;
  const index_t groups = (heads + heads_at_once - 1) / heads_at_once, dim = 2 * half;
  const Cell group = cell(index_t(blockIdx.x) * teams + Team::index(), groups);
  const index_t n = group.row, first = group.column * heads_at_once;
  const auto is_one = [=](int k) { return n < rows && first + k < heads; };
  typename Pairs::template Stored<T> held[heads_at_once], angles, scale;
#pragma unroll
  for (int k = 0; k < heads_at_once; ++k) {
    const T* const head = x + (n * heads + first + k) * dim;
    held[k].read(is_one(k) ? half : 0, head, head + half);
  }
  angles.read(n < rows ? half : 0, cosines + n * half, sines + n * half);
  scale.read(half, w, w + half);
#pragma unroll
  for (int k = 0; k < heads_at_once; ++k) {
    Pairs head = held[k].numbers();
    float sum = 0;
    head.with([&](float v) { sum += v * v; });
    const float r = 1.0f / sqrtf(Team::sum(sum, nullptr) / float(dim) + eps);
    if (!is_one(k)) continue;
    head.with([=](float& v, float s) { v = v * r * s; }, scale.numbers());
    head.turn(angles, 1);
    for (int p = 0; p < parts.count; ++p) {
      const HeadPart<T>& part = parts.part[p];
      const index_t h = first + k - part.first;
      if (h >= 0 && h < part.count) head.write(half, part.data + (n * part.count + h) * dim);
    }
    if (Team::member() == 0) rstd[n * heads + first + k] = r;
  }
}

/// x and dy of the heads that a team works on, one turn after the other: read when asked for.
template <class Pairs, class T>
class HeadsInPlace {
 public:
  static constexpr int ahead = 0;
  static constexpr std::size_t bytes = 0;
  __device__ HeadsInPlace(const T* x, const T* dy) : x_(x), dy_(dy) {}
  __device__ void begin(index_t, index_t, index_t) const {}
  __device__ static void wait() {}
  __device__ __forceinline__ Pairs x(index_t, index_t row, index_t half) const {
    return read(x_, row, half);
  }
  __device__ __forceinline__ Pairs dy(index_t, index_t row, index_t half) const {
    return read(dy_, row, half);
  }

 private:
  __device__ __forceinline__ static Pairs read(const T* from, index_t row, index_t half) {
    typename Pairs::template Stored<T> head;
    head.read(half, from + row * 2 * half, from + row * 2 * half + half);
    return head.numbers();
  }
  const T *x_, *dy_;
};

/// The same, on their way some turns ahead.
template <class Pairs, class T>
class HeadsAhead {
  using Ring = AheadRing<2, 2, T>;

 public:
  static constexpr int ahead = Ring::turns - 1;
  static constexpr std::size_t bytes = Ring::bytes(head_threads);
  __device__ HeadsAhead(const T* x, const T* dy) : x_(x), dy_(dy), ring_(TeamSums::before()) {}
  __device__ __forceinline__ void begin(index_t turn, index_t row, index_t half) {
    Pairs::each(half, [&](int, index_t i) {
      const index_t at = row * 2 * half + i;
      ring_.begin(turn, 0, 0, x_ + at);
      ring_.begin(turn, 0, 1, x_ + at + half);
      ring_.begin(turn, 1, 0, dy_ + at);
      ring_.begin(turn, 1, 1, dy_ + at + half);
    });
    Ring::close_turn();
  }
  __device__ static void wait() { Ring::wait(); }
  __device__ __forceinline__ Pairs x(index_t turn, index_t, index_t half) const {
    return read(turn, 0, half);
  }
  __device__ __forceinline__ Pairs dy(index_t turn, index_t, index_t half) const {
    return read(turn, 1, half);
  }

 private:
  __device__ __forceinline__ Pairs read(index_t turn, int array, index_t half) const {
    Pairs head;
    Pairs::each(half, [&](int k, index_t) {
      ring_.numbers(turn, array, 0, head.low[k]);
      ring_.numbers(turn, array, 1, head.high[k]);
    });
    return head;
  }
  const T *x_, *dy_;
  Ring ring_;
};

/// Each block a part of `turns` heads of rows for each team, which takes neighbours: mostly of one
/// row, whose angles it keeps. part(p, d) is what they add to dw(d).
template <class Pairs, class Heads, class T>
__global__ void __launch_bounds__(head_threads, 2)
    rms_norm_rope_backward_kernel(const T* x, const T* w, const float* rstd, const T* cosines,
                                  const T* sines, const T* dy, index_t rows, index_t turns,
                                  index_t heads, index_t half, T* dx, float* part) {
  using Team = typename Pairs::Team;
  constexpr int teams = head_threads / Pairs::lanes_of_team;
  const index_t dim = 2 * half, first = (blockIdx.x * teams + Team::index()) * turns;
  const auto mine = [=](index_t turn) {
    return turn < turns && first + turn < rows ? half : index_t(0);
  };
  Heads given(x, dy);
  for (int turn = 0; turn < Heads::ahead; ++turn) given.begin(turn, first + turn, mine(turn));
  typename Pairs::template Stored<T> angles, scale;
  scale.read(half, w, w + half);
  Pairs sums;
  index_t n = -1;
  float next_rstd = first < rows ? rstd[first] : 0;
  for (index_t turn = 0; turn < turns; ++turn) {
    const index_t row = first + turn;
    const float r = next_rstd;
    const index_t of = cell(row, heads).row;
    if (mine(turn) > 0 && of != n) {
      n = of;
      angles.read(half, cosines + n * half, sines + n * half);
    }
    next_rstd = row + 1 < rows ? rstd[row + 1] : 0;
    Heads::wait();
    Pairs out = given.dy(turn, row, mine(turn));
    out.turn(angles, -1);
    float dot = 0;
    out.with([&](float d, float v, float s) { dot += d * v * s; }, given.x(turn, row, mine(turn)),
             scale.numbers());
    given.begin(turn + Heads::ahead, row + Heads::ahead, mine(turn + Heads::ahead));
    const float shrink = Team::sum(dot, nullptr) / float(dim) * r * r * r;
    const Pairs in = given.x(turn, row, mine(turn));
    sums.with([=](float& sum, float d, float v) { sum += d * v * r; }, out, in);
    out.with([=](float& d, float v, float s) { d = r * d * s - shrink * v; }, in, scale.numbers());
    out.write(mine(turn), dx + row * dim);
  }
  copy_async_wait<0>();
  __syncthreads();  // where heads came ahead, sums come now
  sums.write(half, TeamSums::of_team(Team::index(), dim));
  TeamSums::join(teams, dim, part + blockIdx.x * dim);
}

/// f(HeldPairs, x and dy in backward) for heads of half pairs, as vectors if they may be.
template <class T, class F>
void for_turned_head(bool vectors, index_t half, F f) {
  using Any = HeldPairs<1, 32, 4>;
  using Short = HeldPairs<wide, 8, 1>;
  using Long = HeldPairs<wide, 16, 1>;
  if (!vectors)
    f.template operator()<Any, HeadsInPlace<Any, T>>();
  else if (half <= 8 * wide)
    f.template operator()<Short, HeadsAhead<Short, T>>();
  else
    f.template operator()<Long, HeadsAhead<Long, T>>();
}

}  // namespace cuda::detail

/// Each head of each row of x, normalised as by rms_norm and turned as by rope by its row's angles,
/// in every part of y that takes it. A head has at most 256 numbers.
///                     x (N, heads, D)  w (D)  cos, sin (N, D / 2)  rstd (N * heads)
template <class T>
void rms_norm_rope(CudaBackend<T>& backend, In<T, 3> x, In<T, 1> w, float eps, In<T, 2> cos,
                   In<T, 2> sin, HeadPlaces<T> y, Out<float, 1> rstd) {
  using namespace cuda::detail;
  const index_t rows = x.shape[0], heads = x.shape[1], half = x.shape[2] / 2;
  detail::expect_turned_heads<T>(x, w, cos, sin, rstd.shape[0]);
  detail::expect_places<T>(y, heads);
  expects(2 * half <= largest_turned_head, "rms_norm_rope: a head has at most 256 numbers");
  bool vectors = cuda::are_vectors<T>(half, {x.data, w.data, cos.data, sin.data});
  for (const HeadPart<T>& part : y) vectors = vectors && cuda::is_aligned(part.data, cuda::wide);
  for_turned_head<T>(vectors, half, [&]<class Pairs, class>() {
    const index_t groups = (heads + heads_at_once - 1) / heads_at_once;
    std::size_t next = 0;
    do {  // without parts, too: rstd is to be written
      HeadParts<T> some = {};
      while (some.count < some.most && next < y.size()) some.part[some.count++] = y[next++];
      cuda::launch(backend.stream(), rms_norm_rope_kernel<Pairs, T>,
                   cuda::blocks_for(rows * groups, Pairs::Team::in_block(head_threads)),
                   unsigned(head_threads), 0, x.data, w.data, eps, cos.data, sin.data, rows, heads,
                   half, some, rstd.data);
    } while (next < y.size());
  });
}

/// From dy, the gradient of the turned heads: dx written, dw added. dx may be dy.
///                     x, dy, dx (N, heads, D)  w, dw (D)  rstd (N * heads)  cos, sin (N, D / 2)
template <class T>
void rms_norm_rope_backward(CudaBackend<T>& backend, In<T, 3> x, In<T, 1> w, In<float, 1> rstd,
                            In<T, 2> cos, In<T, 2> sin, In<T, 3> dy, Out<T, 3> dx,
                            Out<float, 1> dw) {
  using namespace cuda::detail;
  const index_t heads = x.shape[1], dim = x.shape[2], half = dim / 2, rows = rstd.shape[0];
  detail::expect_turned_heads<T>(x, w, cos, sin, rows);
  expects(dy.size() == x.size() && dx.size() == x.size() && dw.shape[0] == dim,
          "rms_norm_rope_backward: shapes differ");
  expects(dim <= largest_turned_head, "rms_norm_rope: a head has at most 256 numbers");
  if (rows == 0 || dim == 0) return;
  const bool vectors =
      cuda::are_vectors<T>(half, {x.data, w.data, cos.data, sin.data, dy.data, dx.data});
  for_turned_head<T>(vectors, half, [&]<class Pairs, class Heads>() {
    constexpr int teams = Pairs::Team::in_block(head_threads);
    const cuda::RowParts runs(rows, 1, 512 * teams);
    const unsigned parts = cuda::blocks_for(runs.count, teams);
    auto part = backend.template allocate<float>(index_t(parts) * dim);
    cuda::launch(backend.stream(), rms_norm_rope_backward_kernel<Pairs, Heads, T>, parts,
                 unsigned(head_threads), cuda::TeamSums::bytes(teams, dim, Heads::bytes), x.data,
                 w.data, rstd.data, cos.data, sin.data, dy.data, rows, runs.each, heads, half,
                 dx.data, part.data());
    cuda::add_parts(backend, part.data(), parts, dim, dw.data);
  });
}

}  // namespace dflash
