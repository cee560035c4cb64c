#pragma once

#include <algorithm>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cuda/attention_hopper_tile.cuh"

namespace dflash::cuda {

/// One tile of query rows: what its planners tell the others.
template <int D>
struct HopperWork {
  using Cut = HopperCut<D>;
  bool exists;
  QueryTile queries;
  TileKeys<Cut::rows> rows;
  WarpKeys group_keys[Cut::groups][2];
};

/// What the groups must know of a tile of keys at once: whether there is one, and for each group
/// whether some of its rows see some of it, and whether all see all.
struct SeenTile {
  unsigned bits;

  __device__ SeenTile(const KeyTile& tile, const WarpKeys (&keys)[2][2], int tile_keys)
      : bits(tile.exists() ? 1 : 0) {
    for (int group = 0; group < 2; ++group) {
      const WarpKeys& k = keys[group][tile.own ? 1 : 0];
      if (k.sees(tile)) bits |= 2u << 2 * group;
      if (k.sees_all(tile, tile_keys)) bits |= 4u << 2 * group;
    }
  }
  __device__ bool exists() const { return (bits & 1) != 0; }
  __device__ bool some(int group) const { return (bits >> 2 * group & 2) != 0; }
  __device__ bool all(int group) const { return (bits >> 2 * group & 4) != 0; }
};

/// The tiles of query rows of all key/value heads, which blocks of threads take in turn: the first
/// by their number, then whichever `next` counts.
struct HopperItems {
  int tiles, kv_heads;
  int* next;

  HopperItems(const AttentionPlan<bfloat16>& plan, int rows, int kernel)
      : tiles(int(plan.query_tiles(rows))),
        kv_heads(int(plan.used_kv_heads())),
        next(plan.counter(kernel)) {}
  /// As many as run at once: what is computed does not depend on it.
  unsigned blocks(int multiprocessors) const {
    return unsigned(std::min(tiles * kv_heads, multiprocessors));
  }
};

/// Whether keys or values multiply weights, and are cleared where no row sees them: the weight
/// there is 0, but they may be no numbers.
enum class Cleared { keys, values };

/// The way of keys and values to the groups that compute. A block of threads does one tile of query
/// rows after the other; planners and copies are a tile or a few stages ahead.
template <int D, int keys_, int stages_, Cleared cleared>
struct KeyRing {
  using Cut = HopperCut<D>;
  static constexpr int keys = keys_;  // of a tile
  static constexpr bool clears_keys = cleared == Cleared::keys;
  /// Where only values multiply weights, keys come and are free before them; else both at once.
  static constexpr bool apart = !clears_keys;
  using Work = HopperWork<D>;
  static constexpr int stages = stages_, planners = 2, planners_barrier = 1;
  using Place = RingPlace<stages>;
  using WorkPlace = RingPlace<2>;
  struct Stage {
    bfloat16 k[Cut::panels * keys * 64], v[Cut::panels * keys * 64];
  };
  bfloat16 q[2][Cut::groups * Cut::tile_size];
  Stage stage[stages];
  /// Of a stage's keys and of its values; those of keys stand for both if they are not apart.
  Barrier k_here[stages], v_here[stages], k_free[stages], v_free[stages];
  /// For the warp that clears: a tile has been copied that needs it, or does not.
  Barrier copied[stages];
  Barrier planned[2], q_here[2], done[2];
  KeyTile tile[stages];
  SeenTile seen[stages];
  KeyTiles<keys> tiles;
  Work work[2];
  int next_item;

  /// Descriptions of a stage's keys and values, from those of the first.
  __device__ __forceinline__ std::uint64_t k(const Place& place) const {
    return behind(describe(stage[0].k), unsigned(place.at) * unsigned(sizeof(Stage)));
  }
  __device__ __forceinline__ std::uint64_t v(const Place& place) const {
    return behind(describe(stage[0].v), unsigned(place.at) * unsigned(sizeof(Stage)));
  }
  __device__ __forceinline__ std::uint64_t k_values(const Place& place) const {
    return behind(describe_values<keys>(stage[0].k), unsigned(place.at) * unsigned(sizeof(Stage)));
  }
  __device__ __forceinline__ std::uint64_t v_values(const Place& place) const {
    return behind(describe_values<keys>(stage[0].v), unsigned(place.at) * unsigned(sizeof(Stage)));
  }

  /// One thread of the block calls it; a block barrier must follow.
  __device__ void begin() {
    for (int i = 0; i < stages; ++i) {
      begin_barrier(k_here[i], 1);
      begin_barrier(v_here[i], 1);
      begin_barrier(copied[i], 1);
      begin_barrier(k_free[i], Cut::groups * Cut::group_warps + 1);
      begin_barrier(v_free[i], Cut::groups * Cut::group_warps);
    }
    for (int i = 0; i < 2; ++i) {
      begin_barrier(planned[i], planners * warp_size);
      begin_barrier(q_here[i], planners * warp_size);
      begin_barrier(done[i], Cut::groups * Cut::group_warps + 2);
    }
  }

  /// The warp that copies.
  __device__ __forceinline__ void copy(const KeyMaps& maps, const AttentionShape& a) {
    Place place;
    for (WorkPlace now;; now.advance()) {
      wait(planned[now.at], now.parity);
      const Work& w = work[now.at];
      if (!w.exists) return;
      const int kv_head = w.queries.kv_head(a);
      tiles.start(w.rows);
      for (int turn = 0;; ++turn) {
        const KeyTile found = tiles[turn];
        // The first round finds the stages free: as if the phase before the first had ended.
        wait(k_free[place.at], place.parity ^ 1);
        if (lane_index() == 0) {
          tile[place.at] = found;
          seen[place.at] = SeenTile(found, w.group_keys, keys);
          Barrier& landed = clears_keys && partial(found) ? copied[place.at] : k_here[place.at];
          begin_phase(landed, found, apart ? sizeof stage[0].k : sizeof stage[0]);
          copy_keys(stage[place.at].k, found, maps.k_block, maps.k_context, kv_head, landed);
          if (!apart)
            copy_keys(stage[place.at].v, found, maps.v_block, maps.v_context, kv_head, landed);
        }
        if (apart) wait(v_free[place.at], place.parity ^ 1);
        if (lane_index() == 0) {
          if (apart) {
            Barrier& landed = partial(found) ? copied[place.at] : v_here[place.at];
            begin_phase(landed, found, sizeof stage[0].v);
            copy_keys(stage[place.at].v, found, maps.v_block, maps.v_context, kv_head, landed);
          }
          if (!partial(found)) arrive(copied[place.at]);
        }
        place.advance();
        if (!found.exists()) break;
        tiles.find(turn + 2, w.rows);
      }
      arrive_as_warp(done[now.at]);
    }
  }

  /// The warp that puts zeros where no row sees a key.
  __device__ __forceinline__ void clear() {
    Place place;
    for (WorkPlace now;; now.advance()) {
      wait(planned[now.at], now.parity);
      if (!work[now.at].exists) return;
      for (bool more = true; more; place.advance()) {
        wait(copied[place.at], place.parity);
        const KeyTile found = tile[place.at];
        more = found.exists();
        if (partial(found)) {
          clear_unseen(clears_keys ? stage[place.at].k : stage[place.at].v, found);
          fence_async();
          arrive_as_warp(clears_keys ? k_here[place.at] : v_here[place.at]);
        }
        arrive_as_warp(k_free[place.at]);
      }
      arrive_as_warp(done[now.at]);
    }
  }

  /// The warps that plan, together. `load` brings what a work needs beside q to its place, 0 or 1.
  template <class Load>
  __device__ __forceinline__ void plan(const AttentionShape& a, const HopperItems& items,
                                       const bfloat16* all_q, Load load) {
    constexpr int threads = planners * warp_size;
    const int thread = int(threadIdx.x) % threads, count = items.tiles * items.kv_heads;
    WorkPlace now;
    for (int item = int(blockIdx.x); item < count; item = take_next(items.next, thread, threads)) {
      // Tiles further back see more keys: they go first, so that all multiprocessors end together.
      const int tile = items.tiles - 1 - item % items.tiles;
      const QueryTile queries(a, HeadsOfKey(a, item / items.tiles), tile * Cut::rows, Cut::rows);
      if (queries.size <= 0) continue;
      Work& w = work[now.at];
      wait(done[now.at], now.parity ^ 1);
      if (thread == 0) w.exists = true, w.queries = queries;
      w.rows.fill(a, queries, {}, 0, thread, threads);
      sync_some(planners_barrier, threads);
      fill_warp_keys(w.group_keys[thread / warp_size], w.rows.seen, queries,
                     thread / warp_size * Cut::tile, Cut::tile);
      arrive(planned[now.at]);
      load_panels<D>(q[now.at], queries, a.dim, all_q, thread, threads);
      copy_async_commit();
      copy_async_wait<0>();
      fence_async();
      arrive(q_here[now.at]);
      load(queries, now.at, thread, threads);
      now.advance();
    }
    wait(done[now.at], now.parity ^ 1);
    if (thread == 0) work[now.at].exists = false;
    arrive(planned[now.at]);
  }

 private:
  __device__ __forceinline__ int take_next(int* next, int thread, int threads) {
    if (thread == 0) next_item = int(gridDim.x) + atomicAdd(next, 1);
    sync_some(planners_barrier, threads);
    const int item = next_item;
    sync_some(planners_barrier, threads);
    return item;
  }

  static __device__ bool partial(const KeyTile& t) {
    return t.exists() && (t.first > t.start || t.stop < t.start + keys);
  }

  static __device__ __forceinline__ void begin_phase(Barrier& landed, const KeyTile& t,
                                                     unsigned bytes) {
    t.exists() ? arrive_expecting(landed, bytes) : arrive(landed);
  }
  static __device__ __forceinline__ void copy_keys(bfloat16* to, const KeyTile& t,
                                                   const TensorMap& own, const TensorMap& context,
                                                   int kv_head, Barrier& landed) {
    if (t.exists()) copy_panels<D, keys>(to, t.own ? own : context, landed, kv_head, t.start);
  }

  static __device__ __forceinline__ void clear_unseen(bfloat16* rows, const KeyTile& t) {
    constexpr int chunks = Cut::panels * 8;
    const int first = t.first - t.start, stop = t.stop - t.start;
    for (int i = lane_index(); i < keys * chunks; i += warp_size) {
      const int row = i / chunks, chunk = i % chunks;
      if (row >= first && row < stop) continue;
      char* const panel = reinterpret_cast<char*>(rows + chunk / 8 * keys * 64);
      *reinterpret_cast<EightElements*>(panel + swizzled(row, chunk % 8)) = EightElements{};
    }
  }
};

/// A group's way over the tiles of keys that some of its rows see, from the ring's `place` to the
/// end of this work. While `body` turns the scores of one tile into weights, the weights of the one
/// before multiply what it has there.
template <class Ring, class Body>
__device__ __forceinline__ void walk(Ring& ring, int group, typename Ring::Place& place,
                                     Body& body) {
  typename Ring::Place before;
  bool weights_left = false;  // of the tile at `before`
  const auto begin_scores = [&] {
    begin_group_products();
    body.begin_scores(ring, place);
    commit_group_products();
  };
  const auto weigh = [&](SeenTile seen) {
    KeyTile now = {};
    if (!seen.all(group)) now = ring.tile[place.at];
    if (Ring::apart) arrive_as_warp(ring.k_free[place.at]);
    body.weigh(now, seen.all(group));
  };
  const auto begin_sum = [&] {
    if (Ring::apart) wait(ring.v_here[before.at], before.parity);
    begin_group_products();
    body.begin_sum(ring, before);
    commit_group_products();
  };
  const auto end_sum = [&] {
    body.end_sum();
    arrive_as_warp(Ring::apart ? ring.v_free[before.at] : ring.k_free[before.at]);
  };
  for (bool more = true; more; place.advance()) {
    wait(ring.k_here[place.at], place.parity);
    const SeenTile seen = ring.seen[place.at];
    more = seen.exists();
    if (seen.some(group)) {
      begin_scores();
      if (weights_left) {
        begin_sum();
        body.template wait_scores<1>();
        weigh(seen);
        end_sum();
      } else {
        body.template wait_scores<0>();
        weigh(seen);
      }
      body.round();
      before = place;
      weights_left = true;
      continue;
    }
    if (!more) body.end_scores();
    if (weights_left) {  // before others wait for its place
      begin_sum();
      end_sum();
      weights_left = false;
    }
    if (Ring::apart) {
      wait(ring.v_here[place.at], place.parity);
      arrive_as_warp(ring.v_free[place.at]);
    }
    arrive_as_warp(ring.k_free[place.at]);
  }
}

/// A group of warps that computes, work after work.
template <int D, class Ring, class Body>
__device__ __forceinline__ void compute(Ring& ring, int group, Body& body) {
  using Cut = HopperCut<D>;
  const int first = group * Cut::tile + warp_index() % Cut::group_warps * 16;
  typename Ring::Place place;
  for (typename Ring::WorkPlace now;; now.advance()) {
    wait(ring.planned[now.at], now.parity);
    const auto& work = ring.work[now.at];
    if (!work.exists) return;
    wait(ring.q_here[now.at], now.parity);
    body.begin(work, now.at, ring.q[now.at] + group * Cut::tile_size, group, first);
    walk(ring, group, place, body);
    body.end(work.queries, first);
    arrive_as_warp(ring.done[now.at]);
  }
}

/// What all threads of a block do: four warps copy, clear and plan, the others compute.
template <int D, class Ring, class Load, class Body>
__device__ __forceinline__ void attend(Ring& ring, const AttentionShape& a,
                                       const HopperItems& items, const bfloat16* q,
                                       const KeyMaps& maps, Load load, Body body) {
  if (threadIdx.x == 0) {
    ring.begin();
    fence_barriers();
  }
  __syncthreads();
  const int warp = warp_index(), group = warp / HopperCut<D>::group_warps - 1;
  if (group < 0) {
    keep_registers<72>();
    if (warp == 0) return ring.copy(maps, a);
    if (warp == 1) return ring.clear();
    ring.plan(a, items, q, load);
  } else {
    take_registers<216>();
    compute<D>(ring, group, body);
  }
}

}  // namespace dflash::cuda
