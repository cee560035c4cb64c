#pragma once

#include <array>
#include <utility>

#include "dflash/cpu/gemm_tile.hpp"
#include "dflash/cpu/path.hpp"

namespace dflash::detail {

/// The tiles of one instruction set. A panel of b is 2 * lanes wide; a last panel of at most
/// `lanes` columns is `lanes` wide.
template <class T>
struct GemmKernel {
  using Tile = void (*)(const GemmTile<T>&);
  index_t rows, lanes;
  const Tile* tiles;  // [rows - 1][vectors - 1]

  index_t panel_columns() const { return 2 * lanes; }
  index_t panels(index_t columns) const { return (columns + 2 * lanes - 1) / (2 * lanes); }
  /// Width in memory of a panel of which `columns` are left.
  index_t width(index_t columns) const { return columns > lanes ? 2 * lanes : lanes; }
  /// Columns in memory of all panels.
  index_t padded(index_t columns) const { return (columns + lanes - 1) / lanes * lanes; }
  void run(index_t row_count, const GemmTile<T>& tile) const {
    tiles[2 * (row_count - 1) + (tile.columns > lanes)](tile);
  }
};

template <class T, template <class, int, class> class Tile, int... R>
constexpr std::array<typename GemmKernel<T>::Tile, 2 * sizeof...(R)> gemm_tiles(
    std::integer_sequence<int, R...>) {
  return {Tile<T, R % 2 + 1, std::make_integer_sequence<int, R / 2 + 1>>::run...};
}

template <class T, template <class, int, class> class Tile, int Rows>
inline constexpr auto gemm_table = gemm_tiles<T, Tile>(std::make_integer_sequence<int, 2 * Rows>());

template <class T>
GemmKernel<T> gemm_kernel(CpuPath path) {
#if defined(__x86_64__)
  if (path == CpuPath::avx512)
    return {12, Vector<T, 64>::lanes, gemm_table<T, Avx512Tile, 12>.data()};
  if (path == CpuPath::avx2) return {6, Vector<T, 32>::lanes, gemm_table<T, Avx2Tile, 6>.data()};
#endif
  return {4, Vector<T, 16>::lanes, gemm_table<T, PortableTile, 4>.data()};
}

}  // namespace dflash::detail
