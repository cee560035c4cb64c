#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "dflash/core/attention_rule.hpp"
#include "dflash/cpu/backend.hpp"
#include "dflash/cpu/gemm.hpp"

namespace dflash::detail {

/// Keys are taken so many at a time, counted from the first context row of the query's sample and
/// from the first own row: the sums of a query row then fall into the same parts in every batch.
inline constexpr index_t key_chunk = 64;

/// What attention computes at a time: the rows of a few neighbouring blocks of one sample, for the
/// query heads that share a key/value head. Row i is query row u = i / heads of the tile.
struct QueryTile {
  const BlockMask* mask;
  Range blocks, heads;
  Range *context, *own;  // (query rows): the keys that each sees

  index_t query_rows() const { return blocks.size() * mask->block_size; }
  index_t rows() const { return query_rows() * heads.size(); }
  /// How many query rows from a multiple of it on see the same keys.
  index_t alike() const { return mask->window > 0 ? 1 : mask->block_size; }
  /// Which (query row, head) of all `all_heads` row i is.
  index_t source(index_t i, index_t all_heads) const {
    return (blocks.begin * mask->block_size + i / heads.size()) * all_heads + heads.begin +
           i % heads.size();
  }
  /// f(i, source(i)) for some rows.
  template <class F>
  void for_rows(Range rows, index_t all_heads, F&& f) const {
    const index_t group = heads.size();
    index_t at = source(rows.begin, all_heads), h = rows.begin % group;
    for (index_t i = rows.begin; i < rows.end; ++i, ++at) {
      f(i, at);
      if (++h == group) h = 0, at += all_heads - group;
    }
  }
};

/// Up to key_chunk keys, in slots 0, 1, ... from row `first` of the context or of the blocks.
struct KeyChunk {
  bool own;
  index_t first;
  Range slots;           // all that the rows see lie in here
  Range rows;            // of the tile, that see any
  const Range* visible;  // (query rows): what each sees, in rows of the source

  index_t width() const { return (slots.end + 15) / 16 * 16; }
  /// The slots that query row u of the tile sees.
  Range seen(index_t u, index_t heads) const {
    if (u * heads < rows.begin || u * heads >= rows.end) return {};
    return {std::max(visible[u].begin - first, index_t(0)),
            std::min(visible[u].end - first, key_chunk)};
  }
};

/// f(chunk) for the chunks of rows [begin, ...) of one source that query rows [some) of the tile
/// see.
template <class F>
void for_each_chunk(const QueryTile& tile, bool own, Range some, index_t begin, F&& f) {
  const Range* visible = own ? tile.own : tile.context;
  const auto bounds = [&](Range within, Range& rows) {
    Range keys{within.end, within.begin};
    for (index_t u = some.begin; u < some.end; ++u) {
      const index_t first = std::max(visible[u].begin, within.begin),
                    last = std::min(visible[u].end, within.end);
      if (first >= last) continue;
      if (keys.begin >= keys.end) rows.begin = u;
      rows.end = u + 1;
      keys = {std::min(keys.begin, first), std::max(keys.end, last)};
    }
    return keys;
  };
  Range rows;
  const Range all = bounds({begin, PTRDIFF_MAX}, rows);
  if (all.begin >= all.end) return;
  for (index_t at = begin + (all.begin - begin) / key_chunk * key_chunk; at < all.end;
       at += key_chunk) {
    const Range keys = bounds({at, at + key_chunk}, rows);
    if (keys.begin >= keys.end) continue;
    const index_t heads = tile.heads.size();
    f(KeyChunk{own,
               at,
               {keys.begin - at, keys.end - at},
               {rows.begin * heads, rows.end * heads},
               visible});
  }
}

/// f(chunk) for the context that the tile sees.
template <class F>
void for_each_context_chunk(const QueryTile& tile, F&& f) {
  const BlockMask& mask = *tile.mask;
  for_each_chunk(tile, false, {0, tile.query_rows()},
                 mask.stripe.local(mask.begin(tile.blocks.begin)), f);
}

/// f(chunk) for each block's own keys.
template <class F>
void for_each_own_chunk(const QueryTile& tile, F&& f) {
  const index_t size = tile.mask->block_size;
  for (index_t u = 0; u < tile.query_rows(); u += size)
    for_each_chunk(tile, true, {u, u + size}, tile.own[u].begin, f);
}

/// f(chunk) for all keys that the tile sees: the context first, then each block's own.
template <class F>
void for_each_chunk(const QueryTile& tile, F&& f) {
  for_each_context_chunk(tile, f);
  for_each_own_chunk(tile, f);
}

template <class T>
void check_attention(In<T, 3> q, const KeyValue<const T>& kv, const AttentionRule& rule) {
  const BlockMask& mask = rule.mask;
  expects(q.shape[0] == mask.blocks() * mask.block_size && mask.begin.shape[0] == mask.blocks(),
          "attention: q must have blocks * block size rows");
  expects(kv.v_context.size() == kv.k_context.size() && kv.v_block.size() == kv.k_block.size(),
          "attention: k and v must be as large");
  const index_t heads = q.shape[1] > 0 ? rule.heads.kv(q.shape[1] - 1) + 1 : 0;
  const auto fits = [&](In<T, 3> k) {
    return k.size() == 0 || (k.shape[1] >= heads && k.shape[2] == q.shape[2]);
  };
  expects(fits(kv.k_context) && fits(kv.k_block),
          "attention: keys and values must have the heads that queries need, of their size");
  for (index_t n = 0; n < mask.blocks(); ++n) {
    // A block's first row sees all of the context that any of its rows does.
    const Range context = mask.context(n, 0), own = mask.own(n, mask.block_size - 1);
    expects(context.size() <= 0 || (context.begin >= 0 && context.end <= kv.k_context.shape[0]),
            "attention: a block sees context rows that are not there");
    expects(own.size() <= 0 || own.end <= kv.k_block.shape[0],
            "attention: the rows of a block are not there");
  }
}

/// How attention is cut into tiles.
class AttentionPlan {
 public:
  template <class T>
  AttentionPlan(CpuBackend<T>& backend, const AttentionRule& rule, index_t heads)
      : rule_(rule), heads_(heads), kv_heads_(heads > 0 ? rule.heads.kv(heads - 1) + 1 : 0) {
    const BlockMask& mask = rule.mask;
    const index_t group = std::min(rule.heads.group, heads),
                  most = std::max<index_t>(
                      usual_rows / std::max<index_t>(1, mask.block_size * group), 1);
    bounds_ = backend.template allocate<index_t>(mask.blocks() + 1);
    for (index_t n = 0; n < mask.blocks(); ++n) {
      const bool fits =
          tiles_ > 0 && n - bounds_.data()[tiles_ - 1] < most && mask.begin(n) == mask.begin(n - 1);
      if (!fits) bounds_.data()[tiles_++] = n;
    }
    bounds_.data()[tiles_] = mask.blocks();
    for (index_t t = 0; t < tiles_; ++t)
      largest_ = std::max(largest_, blocks(t).size() * mask.block_size);
    ranges_ = backend.template allocate<Range>(2 * largest_ * backend.threads());
  }

  index_t tiles() const { return tiles_; }
  index_t kv_heads() const { return kv_heads_; }
  /// Rows of the largest tile.
  index_t rows() const { return largest_ * group(); }

  /// Blocks of the largest tile.
  index_t blocks() const { return largest_ / std::max<index_t>(block_size(), 1); }
  index_t block_size() const { return rule_.mask.block_size; }
  /// Query heads that share a key/value head, at most.
  index_t group() const { return std::min(rule_.heads.group, heads_); }

  /// The context rows that some row of a tile sees.
  Range context(index_t t) const {
    const BlockMask& mask = rule_.mask;
    Range all{0, 0};
    for (index_t n = blocks(t).begin; n < blocks(t).end; ++n) {
      const index_t last = mask.block_size - 1;
      const Range seen{mask.context(n, 0).begin, mask.context(n, last).end};
      if (seen.begin >= seen.end) continue;
      all = all.size() > 0 ? Range{std::min(all.begin, seen.begin), std::max(all.end, seen.end)}
                           : seen;
    }
    return all;
  }

  QueryTile tile(index_t t, index_t kv_head, int thread) {
    const index_t group = rule_.heads.group, first = rule_.heads.first,
                  start = (first / group + kv_head) * group - first;
    Range* const context = ranges_.data() + 2 * largest_ * thread;
    const QueryTile tile{&rule_.mask,
                         blocks(t),
                         {std::max<index_t>(start, 0), std::min(start + group, heads_)},
                         context,
                         context + largest_};
    index_t u = 0;
    for (index_t block = tile.blocks.begin; block < tile.blocks.end; ++block)
      for (index_t offset = 0; offset < rule_.mask.block_size; ++offset, ++u) {
        const bool as_before = offset > 0 && rule_.mask.window == 0;
        tile.context[u] = as_before ? tile.context[u - 1] : rule_.mask.context(block, offset);
        tile.own[u] = as_before ? tile.own[u - 1] : rule_.mask.own(block, offset);
      }
    return tile;
  }

 private:
  static constexpr index_t usual_rows = 192;

  Range blocks(index_t t) const { return {bounds_.data()[t], bounds_.data()[t + 1]}; }

  const AttentionRule& rule_;
  index_t heads_, kv_heads_, tiles_ = 0, largest_ = 0;
  CpuBuffer<index_t> bounds_;
  CpuBuffer<Range> ranges_;
};

/// -infinity in the slots of a row that it does not see.
template <int Width, class T>
[[gnu::always_inline]] inline void hide(const KeyChunk& chunk, Range visible, T* row) {
  const index_t first = visible.begin - chunk.first, last = visible.end - chunk.first;
  if (first <= 0 && last >= Width) return;
  for (int j = 0; j < Width; ++j)
    row[j] = ((j >= first) & (j < last)) ? row[j] : -std::numeric_limits<T>::infinity();
}

}  // namespace dflash::detail
