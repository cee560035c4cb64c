#pragma once

#include <climits>
#include <type_traits>

#include "dflash/core/bfloat16.hpp"
#include "dflash/cuda/attention_plan.cuh"
#include "dflash/cuda/fragments.cuh"
#include "dflash/cuda/warp.cuh"

namespace dflash::cuda {

inline constexpr float log2_e = 1.4426950408889634f;

/// Calls f with the head size that a kernel is compiled for and that holds `dim`, as a type.
template <class F>
void with_head_size(int dim, F&& f) {
  if (dim <= 64) return f(std::integral_constant<int, 64>());
  if (dim <= 96) return f(std::integral_constant<int, 96>());
  if (dim <= 128) return f(std::integral_constant<int, 128>());
  f(std::integral_constant<int, 256>());
}

/// The query heads here that share one key/value head.
struct HeadsOfKey {
  int first, count;

  __device__ HeadsOfKey(const AttentionShape& a, int kv_head) {
    const int start = (a.first_head / a.group + kv_head) * a.group - a.first_head;
    first = max(start, 0);
    count = min(start + a.group, a.heads) - first;
  }
};

/// Neighbouring (query row, head) pairs of those heads, ordered by row, then head: keys and values
/// are loaded once for all heads of a group.
struct QueryTile {
  HeadsOfKey heads;
  int row, rest;  // the tile's first pair: its query row and which of the heads
  int size;       // pairs
  int all_heads;  // of q
  float inverse;

  __device__ QueryTile(const AttentionShape& a, HeadsOfKey heads_, int begin, int most)
      : heads(heads_), all_heads(a.heads), inverse(1.0f / float(heads_.count)) {
    row = begin / heads.count;
    rest = begin - row * heads.count;
    size = min(most, a.rows() * heads.count - begin);
  }
  /// The query row of pair i. Exact: the argument is at least 1 / (2 heads) away from an integer.
  __device__ int row_of(int i) const { return row + int((float(rest + i) + 0.5f) * inverse); }
  __device__ int kv_head(const AttentionShape& a) const {
    return (heads.first + a.first_head) / a.group - a.first_head / a.group;
  }
  /// Which of all (query row, head) pair i is.
  __device__ index_t source(int i) const {
    const int r = row_of(i);
    return index_t(r) * all_heads + heads.first + rest + i - (r - row) * heads.count;
  }
};

/// Keys [start, start + tile size) of one source; those outside [first, stop) are taken as zeros
/// and seen by no row.
struct KeyTile {
  int start, first, stop;
  bool own;

  __device__ bool exists() const { return start < stop; }
};

/// Begins to load the keys or values of a tile, of one head.
template <int Keys, int D, int Threads>
__device__ __forceinline__ void load_keys(bfloat16* to, const AttentionShape& a, int kv_head,
                                          const KeyTile& t, const bfloat16* from) {
  from += (index_t(t.start) * a.kv_heads + kv_head) * a.dim;
  const int step = a.kv_heads * a.dim, first = t.first - t.start, stop = t.stop - t.start;
  load_tile<Keys, D, Threads>(to, a.dim, a.vectors, [=](int i) {
    return i >= first && i < stop ? from + index_t(i) * step : nullptr;
  });
}

/// A tile of keys and values in shared memory.
template <int Keys, int D>
struct KeyStage {
  bfloat16 k[Keys * tile_stride<D>], v[Keys * tile_stride<D>];

  /// Begins to copy them, if there is such a tile. All threads of the block call it.
  template <int Threads>
  __device__ __forceinline__ void load(const AttentionShape& a, int kv_head, const KeyTile& t,
                                       const KeyValue<const bfloat16>& kv) {
    if (t.exists()) {
      load_keys<Keys, D, Threads>(k, a, kv_head, t, t.own ? kv.k_block.data : kv.k_context.data);
      load_keys<Keys, D, Threads>(v, a, kv_head, t, t.own ? kv.v_block.data : kv.v_context.data);
    }
    copy_async_commit();
  }
};

/// What the rows of a query tile see, in shared memory. Rows behind the last repeat it: nothing of
/// them is written, and they make no tile partly visible.
template <int Rows>
struct TileKeys {
  SeenKeys seen[Rows];
  BlockKeys blocks[Rows];  // of the tile's blocks
  int block_count;

  /// Every thread of the block calls it, or each of `threads`; a barrier of them must follow. Of
  /// the keys, one part; the blocks' own belong to the first.
  __device__ void fill(const AttentionShape& a, const QueryTile& tile, KeyParts parts = {},
                       int part = 0, int thread = int(threadIdx.x), int threads = int(blockDim.x)) {
    for (int i = thread; i < Rows; i += threads) {
      const int row = tile.row_of(min(i, tile.size - 1));
      SeenKeys keys = a.seen[row];
      if (parts.keys > 0) {
        keys.context = parts.cut(keys.context, a.blocks[row / a.block_size].base, part);
        if (part > 0) keys.own = {0, 0};
      }
      seen[i] = keys;
    }
    const int first = tile.row / a.block_size, last = tile.row_of(tile.size - 1) / a.block_size;
    for (int i = thread; i <= last - first; i += threads) {
      BlockKeys keys = a.blocks[first + i];
      keys.seen = parts.cut(keys.seen, keys.base, part);
      blocks[i] = keys;
    }
    if (thread == 0) block_count = last - first + 1;
  }
};

/// Which keys of one source some row of a warp sees, [any_begin, any_end), and which all do.
struct WarpKeys {
  int any_begin, any_end, all_begin, all_end;

  __device__ bool sees(const KeyTile& t) const { return any_begin < t.stop && t.start < any_end; }
  /// No key of the tile is hidden from a row.
  __device__ bool sees_all(const KeyTile& t, int keys) const {
    return all_begin <= t.start && all_end >= t.start + keys && t.stop == t.start + keys;
  }
};

/// The same in every lane of a warp that calls it together.
__device__ __forceinline__ WarpKeys keys_of_rows(const SeenKeys* seen, int rows, bool own) {
  WarpKeys k{INT_MAX, INT_MIN, INT_MIN, INT_MAX};
  for (int i = int(threadIdx.x) % warp_size; i < rows; i += warp_size) {
    const auto [begin, end] = seen[i].of(own);
    k.all_begin = max(k.all_begin, begin);
    k.all_end = min(k.all_end, end);
    if (begin >= end) continue;
    k.any_begin = min(k.any_begin, begin);
    k.any_end = max(k.any_end, end);
  }
  return {warp_min(k.any_begin), warp_max(k.any_end), warp_max(k.all_begin), warp_min(k.all_end)};
}

/// keys_of_rows of a warp's rows, [first, first + most) of the tile: of the context, and of the
/// blocks' own.
__device__ __forceinline__ void fill_warp_keys(WarpKeys (&to)[2], const SeenKeys* seen,
                                               const QueryTile& tile, int first, int most) {
  seen += first;
  const int rows = min(most, tile.size - first);  // a warp without rows sees nothing
  for (int own = 0; own < 2; ++own) {
    const WarpKeys keys = keys_of_rows(seen, rows, own != 0);
    if (threadIdx.x % warp_size == 0) to[own] = keys;
  }
  __syncwarp();
}

/// -infinity in the scores that their row does not see.
template <int M, int N>
__device__ __forceinline__ void hide(Accumulator<M, N>& score, const SeenKeys* warp_rows,
                                     const KeyTile& tile) {
  const int row = lane_index() / 4, column = lane_index() % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const KeyRange seen = warp_rows[m * 16 + half * 8 + row].of(tile.own);
      const int begin = seen.begin - tile.start, end = min(seen.end, tile.stop) - tile.start;
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int j = n * 8 + column + i;
          if (j < begin || j >= end) score[m][n][half * 2 + i] = -INFINITY;
        }
    }
}

/// The tiles of `Keys` keys that some row of a query tile sees, one after the other: first the
/// context, then the blocks' own. Lives in shared memory: the warps read tile `turn` and the next
/// while one of them finds the one after.
template <int Keys>
class KeyTiles {
 public:
  /// Called by one warp; a barrier must follow.
  template <int Rows>
  __device__ void start(const TileKeys<Rows>& rows) {
    const WarpKeys own = keys_of_rows(rows.seen, Rows, true);
    int begin = 0, end = 0;
    for_each(rows, [&](BlockKeys b) {
      if (!b.sees(INT_MIN, INT_MAX)) return;
      begin = max(begin, b.seen.begin);
      end = max(end, b.seen.end);
    });
    begin = warp_max(begin), end = warp_max(end);
    if (threadIdx.x % warp_size == 0) {
      last_begin_ = begin;
      last_end_ = end;
      from_ = INT_MIN;
      own_from_ = own.any_begin;
      own_end_ = own.any_end;
      context_left_ = true;
    }
    __syncwarp();
    find(0, rows);
    find(1, rows);
  }

  /// Finds tile number `turn`; called by one warp, in order.
  template <int Rows>
  __device__ void find(int turn, const TileKeys<Rows>& rows) {
    KeyTile tile = {};
    if (context_left_) tile = next_context(rows);
    const bool own = !tile.exists() && own_from_ < own_end_;
    if (own) tile = {own_from_, own_from_, min(own_from_ + Keys, own_end_), true};
    __syncwarp();
    if (threadIdx.x % warp_size == 0) {
      tiles_[turn % 3] = tile;
      context_left_ = tile.exists() && !tile.own;
      if (context_left_)
        from_ = tile.stop;
      else
        own_from_ += own ? Keys : 0;
    }
    __syncwarp();
  }

  /// Tile number `turn`: the one at work, or the next.
  __device__ const KeyTile& operator[](int turn) const { return tiles_[turn % 3]; }

 private:
  template <int Rows>
  __device__ KeyTile next_context(const TileKeys<Rows>& rows) const {
    const int from = from_;
    if (from >= last_begin_ && from <= last_end_ - Keys) return {from, from, from + Keys, false};
    int start = INT_MAX;
    for_each(rows, [&](BlockKeys b) {
      if (b.sees(from, INT_MAX)) start = min(start, max(from, aligned(b)));
    });
    start = warp_min(start);
    if (start == INT_MAX) return {};
    int limit = start + Keys, first = limit, stop = start;
    for_each(rows, [&](BlockKeys b) {
      if (!b.sees(start, INT_MAX)) return;
      const int at = aligned(b);
      if (at > start) {
        limit = min(limit, at);  // another sample's keys are counted from its own base
      } else {
        first = min(first, max(start, b.seen.begin));
        stop = max(stop, b.seen.end);
      }
    });
    stop = min(warp_min(limit), warp_max(stop));
    return {start, warp_min(first), stop, false};
  }
  static __device__ int aligned(BlockKeys b) {
    return b.base + (b.seen.begin - b.base) / Keys * Keys;
  }
  template <int Rows, class F>
  static __device__ void for_each(const TileKeys<Rows>& rows, F f) {
    for (int i = int(threadIdx.x) % warp_size; i < rows.block_count; i += warp_size)
      f(rows.blocks[i]);
  }

  KeyTile tiles_[3];
  int from_, own_from_, own_end_;
  int last_begin_, last_end_;  // of what the blocks see: between them no block's keys begin
  bool context_left_;
};

/// A tile of keys whose gradient one block of threads computes: of the context, in `parts` parts
/// each, or of the blocks' own.
struct KeyGradientTile {
  HeadsOfKey heads;
  int block_pairs;  // (query row, head) pairs of one block
  bool own;
  int index, part, begin, end;  // keys [begin, end)

  __device__ KeyGradientTile(const AttentionShape& a, int kv_head, int task, int keys, int parts)
      : heads(a, kv_head), block_pairs(heads.count * a.block_size) {
    const int context_tasks = (a.context_rows + keys - 1) / keys * parts;
    own = task >= context_tasks;
    index = own ? task - context_tasks : task / parts;
    part = own ? 0 : task % parts;
    begin = index * keys;
    end = min(begin + keys, own ? (a.own_end - a.own_begin) * a.block_size : a.context_rows);
  }

  /// From the first pair that sees some of the keys to behind the last, found by all threads of a
  /// block together.
  template <int Warps>
  __device__ KeyRange pairs(const AttentionShape& a, KeyRange (&scratch)[Warps]) const {
    if (own)
      return {(a.own_begin + begin / a.block_size) * block_pairs,
              (a.own_begin + (end - 1) / a.block_size + 1) * block_pairs};
    KeyRange found{INT_MAX, 0};
    for (int n = int(threadIdx.x); n < a.block_count; n += Warps * warp_size)
      if (a.blocks[n].sees(begin, end)) {
        found.begin = min(found.begin, n);
        found.end = n + 1;
      }
    found = {warp_min(found.begin), warp_max(found.end)};
    if (threadIdx.x % warp_size == 0) scratch[threadIdx.x / warp_size] = found;
    __syncthreads();
    for (const KeyRange& of_warp : scratch) {
      found.begin = min(found.begin, of_warp.begin);
      found.end = max(found.end, of_warp.end);
    }
    if (found.begin >= found.end) return {0, 0};
    return {found.begin * block_pairs, found.end * block_pairs};
  }

  /// The first of the pairs [from, last) whose block sees some of the keys, found by a warp
  /// together; `last` if there is none.
  __device__ int next(const AttentionShape& a, int from, int last) const {
    if (own) return min(from, last);
    for (int n = from / block_pairs; n * block_pairs < last; n += warp_size) {
      const int block = n + int(threadIdx.x) % warp_size;
      const bool sees = block < a.block_count && a.blocks[block].sees(begin, end);
      const unsigned some = __ballot_sync(whole_warp, sees);
      if (some != 0) return min(last, max(from, (n + __ffs(int(some)) - 1) * block_pairs));
    }
    return last;
  }
};

}  // namespace dflash::cuda
