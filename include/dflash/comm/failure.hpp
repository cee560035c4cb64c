#pragma once

#include <algorithm>
#include <cstdio>
#include <exception>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/core/config.hpp"

namespace dflash::detail {

inline std::string text_of(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception of an unknown type";
  }
  return "std::terminate was called";
}

/// How far a rank is: what it publishes so that others can tell who keeps them waiting.
struct RankState {
  int rank = 0;
  bool answers = true;
  index_t number = 0;    // collectives that it has begun, over all its communicators
  char inside[24] = "";  // the collective in which it waits, empty if in none
  double seconds = 0;    // since it began or stopped to wait

  bool is_inside() const { return inside[0] != '\0'; }
  void enter(std::string_view collective) {
    inside[collective.copy(inside, sizeof inside - 1)] = '\0';
  }
  void leave() { inside[0] = '\0'; }
};

/// Who keeps the others waiting: the ranks that do not answer, else those in no collective, else
/// those in the collective of the lowest number.
inline std::vector<RankState> stalled(const std::vector<RankState>& all) {
  std::vector<RankState> found;
  const auto take = [&](auto guilty) {
    if (found.empty()) std::copy_if(all.begin(), all.end(), std::back_inserter(found), guilty);
  };
  take([](const RankState& s) { return !s.answers; });
  take([](const RankState& s) { return !s.is_inside(); });
  index_t lowest = all.empty() ? 0 : all[0].number;
  for (const RankState& s : all) lowest = std::min(lowest, s.number);
  take([&](const RankState& s) { return s.number == lowest; });
  return found;
}

/// One sentence: who waits for whom. `waiting` is the state of the rank that lost patience.
inline std::string stall_text(const std::vector<RankState>& all, const RankState& waiting,
                              double time_out) {
  constexpr std::size_t named = 8;
  const auto seconds = [](double s) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g s", s);
    return std::string(text);
  };
  std::string text = "time-out: rank " + std::to_string(waiting.rank) + " has waited " +
                     seconds(time_out) + " in " + waiting.inside + " (collective " +
                     std::to_string(waiting.number) + ")";
  const auto others = [&](std::vector<RankState> states) {
    std::erase_if(states, [&](const RankState& s) { return s.rank == waiting.rank; });
    return states;
  };
  auto late = others(stalled(all));
  if (late.empty()) late = others(all);  // they have gone on, past this rank
  for (std::size_t i = 0; i < std::min(late.size(), named); ++i) {
    const RankState& s = late[i];
    text += (i == 0 ? " for rank " : "; rank ") + std::to_string(s.rank);
    if (!s.answers) {
      text += ", which does not answer";
    } else if (s.is_inside()) {
      text += std::string(", which is in ") + s.inside + " (collective " +
              std::to_string(s.number) + ")";
    } else {
      text += ", which has been in no collective for " + seconds(s.seconds) +
              " (last: " + std::to_string(s.number) + ")";
    }
  }
  if (late.size() > named) text += "; and " + std::to_string(late.size() - named) + " more";
  return text;
}

}  // namespace dflash::detail
