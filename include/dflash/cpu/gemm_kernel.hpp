#pragma once

#include <array>
#include <utility>

#include "dflash/cpu/amx_tile.hpp"
#include "dflash/cpu/gemm_tile.hpp"
#include "dflash/cpu/path.hpp"

namespace dflash::detail {

/// The tiles of one instruction set, for a in elements A and b in elements B. A panel of b is
/// 2 * lanes wide; a last panel of at most `lanes` columns is `lanes` wide.
template <class T, class A = T, class B = T>
struct GemmKernel {
  using Left = A;
  using Right = B;
  using Tile = void (*)(const GemmTile<T, A, B>&);
  CpuPath path;
  index_t rows, lanes;
  const Tile* tiles;   // [rows - 1][vectors - 1]
  index_t k_step = 1;  // columns of b are filled up with zeros to whole steps, in elements
  // What rounding a factor left over lies, rounded as well, behind every row of a and panel of b.
  bool split = false;
  bool chains = true;  // sums are made of chains (gemm_chain), else they go on from c
  // Tiles two vectors wide, of `rows` rows and of one less, for panels that are far away, if any.
  const Tile* distant = nullptr;
  void (*begin)() = nullptr;  // of any number of tiles on a thread
  void (*end)() = nullptr;

  /// Whether k may be cut between any chains. Matrix registers' sums could be cut as well, but the
  /// longer their slices are, the less often their tiles end in c.
  bool cuts_freely() const { return chains && !split; }
  index_t panel_columns() const { return 2 * lanes; }
  index_t panels(index_t columns) const { return (columns + 2 * lanes - 1) / (2 * lanes); }
  index_t row_tiles(index_t count) const { return (count + rows - 1) / rows; }
  /// Width in memory of a panel of which `columns` are left.
  index_t width(index_t columns) const { return columns > lanes ? 2 * lanes : lanes; }
  /// Columns in memory of all panels.
  index_t padded(index_t columns) const { return (columns + lanes - 1) / lanes * lanes; }
  /// Elements that a tile takes of a column of b.
  index_t depth(index_t k) const {
    return (k + k_step * k_per_element<B> - 1) / (k_step * k_per_element<B>)*k_step;
  }
  /// Elements of a column of b in memory.
  index_t stored_depth(index_t k) const { return split ? 2 * depth(k) : depth(k); }

  /// `a_rest`, `panel_rest`: how far behind tile.a and tile.panel the rests lie, if split. `far`:
  /// the panel is far away.
  void run(const GemmTile<T, A, B>& tile, index_t a_rest, index_t panel_rest, bool far) const {
    const bool wide = tile.columns > lanes;
    const Tile f = far && distant != nullptr && wide && tile.rows >= rows - 1
                       ? distant[rows - tile.rows]
                       : tiles[2 * (tile.rows - 1) + wide];
    if (!split) return f(tile);
    GemmTile<T, A, B> part = tile;
    part.a += a_rest;
    f(part);
    part = tile;
    part.panel += panel_rest;
    part.add = true;
    f(part);
    part.panel = tile.panel;
    f(part);
  }
};

template <class Step>
using KernelOf = GemmKernel<typename Step::Scalar, typename Step::A, typename Step::B>;

template <class Step, template <class, int, class> class Tile, int... R>
constexpr std::array<typename KernelOf<Step>::Tile, 2 * sizeof...(R)> gemm_tiles(
    std::integer_sequence<int, R...>) {
  return {Tile<Step, R % 2 + 1, std::make_integer_sequence<int, R / 2 + 1>>::run...};
}

template <class Step, template <class, int, class> class Tile, int Rows>
inline constexpr auto gemm_table =
    gemm_tiles<Step, Tile>(std::make_integer_sequence<int, 2 * Rows>());

/// Whole tiles, and those of one row less, for panels that are far away.
template <class Step, template <class, int, class> class Tile, int Rows>
inline constexpr std::array<typename KernelOf<Step>::Tile, 2> distant_table = {
    Tile<DistantStep<Step>, 2, std::make_integer_sequence<int, Rows>>::run,
    Tile<DistantStep<Step>, 2, std::make_integer_sequence<int, Rows - 1>>::run};

template <class Tiles, int... R>
constexpr std::array<KernelOf<PairStep<16>>::Tile, sizeof...(R)> amx_tiles(
    std::integer_sequence<int, R...>) {
  return {AmxTile<Tiles, R / 32 + 1, R % 2 + 1>::run...};
}

template <class Tiles>
inline constexpr auto amx_table = amx_tiles<Tiles>(std::make_integer_sequence<int, 64>());

/// Matrix registers of 16 rows of 64 bytes, behind the names of AmxRegisters.
template <class Tiles>
KernelOf<PairStep<16>> amx_kernel(bool split) {
  return {CpuPath::amx, 32,           16,        amx_table<Tiles>.data(), 16, split, false,
          nullptr,      Tiles::begin, Tiles::end};
}

/// Both factors in the type of c.
template <class T>
GemmKernel<T> gemm_kernel(CpuPath path) {
#if defined(__x86_64__)
  if (path >= CpuPath::avx512) {
    GemmKernel<T> kernel{path, 12, Vector<T, 64>::lanes,
                         gemm_table<PlainStep<T, 64>, Avx512Tile, 12>.data()};
    kernel.distant = distant_table<PlainStep<T, 64>, Avx512Tile, 12>.data();
    return kernel;
  }
  if (path == CpuPath::avx2)
    return {path, 6, Vector<T, 32>::lanes, gemm_table<PlainStep<T, 32>, Avx2Tile, 6>.data()};
#endif
  return {path, 4, Vector<T, 16>::lanes, gemm_table<PlainStep<T, 16>, PortableTile, 4>.data()};
}

/// Both factors in bfloat16, `split` into two each or not.
inline KernelOf<PairStep<16>> bfloat16_kernel(CpuPath path, bool split) {
#if defined(__x86_64__)
  if (path == CpuPath::amx) return amx_kernel<AmxRegisters>(split);
  if (path == CpuPath::avx512_bf16)
    return {path, 12, 16, gemm_table<DotStep, Avx512Tile, 12>.data(), 1, split};
  if (path == CpuPath::avx512)
    return {path, 8, 16, gemm_table<PairStep<64>, Avx512Tile, 8>.data(), 1, split};
  if (path == CpuPath::avx2)
    return {path, 4, 8, gemm_table<PairStep<32>, Avx2Tile, 4>.data(), 1, split};
#endif
  return {path, 4, 4, gemm_table<PairStep<16>, PortableTile, 4>.data(), 1, split};
}

/// a in float, b in bfloat16: the same bits as gemm_kernel<float>, if b's values are bfloat16.
inline KernelOf<WideningStep<16>> widening_kernel(CpuPath path) {
#if defined(__x86_64__)
  if (path >= CpuPath::avx512)
    return {path, 12, 16, gemm_table<WideningStep<64>, Avx512Tile, 12>.data()};
  if (path == CpuPath::avx2) return {path, 4, 8, gemm_table<WideningStep<32>, Avx2Tile, 4>.data()};
#endif
  return {path, 4, 4, gemm_table<WideningStep<16>, PortableTile, 4>.data()};
}

}  // namespace dflash::detail
