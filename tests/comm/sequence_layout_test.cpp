#include "dflash/comm/sequence_layout.hpp"

#include <doctest/doctest.h>

#include <set>

namespace sequence_layout_test {

using namespace dflash;

TEST_CASE("Even cuts are contiguous, whole and differ by at most one") {
  for (index_t total : {0, 1, 5, 64, 101})
    for (index_t parts : {1, 2, 3, 7}) {
      index_t at = 0, least = total, most = 0;
      for (index_t i = 0; i < parts; ++i) {
        const Range cut = even_cut(total, parts, i);
        CHECK(cut.begin == at);
        at = cut.end;
        least = std::min(least, cut.size());
        most = std::max(most, cut.size());
      }
      CHECK(at == total);
      CHECK(most - least <= 1);
    }
}

TEST_CASE("Every context row and every block has one owner, for every layout") {
  for (index_t u : {1, 2, 3})
    for (index_t r : {1, 2, 4})
      for (index_t total : {0, 1, 63, 64, 65, 200, 1000}) {
        const SequenceLayout layout{u, r};
        std::set<index_t> seen;
        index_t blocks = 0;
        for (index_t rank = 0; rank < layout.ranks(); ++rank) {
          index_t rows = 0;
          for (const Range& range : layout.context_ranges(rank, total)) {
            CHECK(range.begin < range.end);
            for (index_t row = range.begin; row < range.end; ++row) {
              CHECK(seen.insert(row).second);
              CHECK(row / RingStripe::rows % r == rank / u);
              ++rows;
            }
          }
          CHECK(rows == layout.context_rows(rank, total));
          CHECK(layout.blocks(rank, total).begin == blocks);
          blocks = layout.blocks(rank, total).end;
        }
        CHECK(index_t(seen.size()) == total);
        CHECK(blocks == total);
      }
}

TEST_CASE("A ring index holds an equal share of every prefix, to within a stripe") {
  for (index_t ring : {1, 2, 3, 5})
    for (index_t total = 0; total < 1500; total += 37) {
      index_t sum = 0;
      for (index_t i = 0; i < ring; ++i) {
        const RingStripe stripe{ring, i};
        const index_t here = stripe.local(total);
        sum += here;
        CHECK(std::abs(here * ring - total) <= ring * RingStripe::rows);
        for (index_t at = std::max<index_t>(0, here - 3); at < here; ++at) {
          CHECK(stripe.global(at) < total);
          CHECK(stripe.local(stripe.global(at)) == at);
        }
      }
      CHECK(sum == total);
    }
}

}  // namespace sequence_layout_test
