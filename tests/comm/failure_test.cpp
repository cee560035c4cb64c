#include "dflash/comm/failure.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace failure_test {

using dflash::detail::RankState;
using dflash::detail::stall_text;

RankState state(int rank, dflash::index_t number, const char* inside, double seconds = 1) {
  RankState s{.rank = rank, .number = number, .seconds = seconds};
  s.enter(inside);
  return s;
}

TEST_CASE("a rank that does not answer is late before all others") {
  RankState silent = state(2, 0, "");
  silent.answers = false;
  const auto own = state(0, 7, "all_gather");
  CHECK(stall_text({own, state(1, 6, ""), silent, state(3, 2, "barrier")}, own, 30) ==
        "time-out: rank 0 has waited 30 s in all_gather (collective 7) for rank 2, which does not "
        "answer");
}

TEST_CASE("a rank in no collective is late before those that wait") {
  const auto own = state(0, 7, "all_gather");
  CHECK(stall_text({own, state(1, 9, "", 31.25), state(2, 2, "barrier")}, own, 30) ==
        "time-out: rank 0 has waited 30 s in all_gather (collective 7) for rank 1, which has been "
        "in no collective for 31.2 s (last: 9)");
}

TEST_CASE("where all wait, those in the earliest collective are late") {
  const auto own = state(1, 7, "all_gather");
  CHECK(stall_text({state(0, 6, "barrier"), own, state(2, 6, "split"), state(3, 8, "barrier")}, own,
                   0.5) ==
        "time-out: rank 1 has waited 0.5 s in all_gather (collective 7) for rank 0, which is in "
        "barrier (collective 6); rank 2, which is in split (collective 6)");
  CHECK(stall_text({state(0, 7, "barrier"), own}, own, 0.5) ==
        "time-out: rank 1 has waited 0.5 s in all_gather (collective 7) for rank 0, which is in "
        "barrier (collective 7)");
}

TEST_CASE("a rank that the others have passed waits for them") {
  const auto own = state(0, 42, "barrier");
  CHECK(stall_text({own, state(1, 43, "all_gather")}, own, 12) ==
        "time-out: rank 0 has waited 12 s in barrier (collective 42) for rank 1, which is in "
        "all_gather (collective 43)");
}

TEST_CASE("of very many late ranks some are named and the rest counted") {
  std::vector<RankState> all{state(0, 3, "barrier")};
  for (int r = 1; r <= 20; ++r) all.push_back(state(r, 2, ""));
  const std::string text = stall_text(all, all[0], 1);
  CHECK(text.find("; rank 8, which") != std::string::npos);
  CHECK(text.find("rank 9") == std::string::npos);
  CHECK(text.find("; and 12 more") != std::string::npos);
}

TEST_CASE("a collective's long name is cut, not overrun") {
  RankState s;
  s.enter("a name that has more letters than fit into the state");
  CHECK(std::string(s.inside) == "a name that has more le");
  CHECK(s.is_inside());
  s.enter("split");
  CHECK(std::string(s.inside) == "split");
  s.leave();
  CHECK(!s.is_inside());
}

}  // namespace failure_test
