#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dflash/comm/failure.hpp"
#include "dflash/core/error.hpp"

namespace dflash::detail {

/// What all rank threads of one run share: how far each is, and the first failure, which releases
/// every wait of every group. One mutex guards it and all collectives of the run.
class ThreadJob {
 public:
  ThreadJob(int ranks, double time_out)
      : ranks_(std::size_t(ranks)), time_out_(std::min(time_out, longest)) {}

  std::mutex mutex;

  // The functions below want the mutex held.

  void wake(int rank) { ranks_[std::size_t(rank)].wake.notify_one(); }

  /// Counts a collective that the rank begins.
  void begin(int rank) { ++ranks_[std::size_t(rank)].state.number; }

  /// The first failure stays. `error` may be null: then the text is all there is.
  void fail(const std::string& text, std::exception_ptr error) {
    if (failed_) return;
    failed_ = true;
    text_ = text;
    error_ = std::move(error);
    for (Rank& rank : ranks_) rank.wake.notify_all();
    ended_.notify_all();
  }

  /// Waits until `missing`, the ranks of the job that have yet to come, is empty. Throws if the job
  /// has failed, even if nobody is missing: others may be unwinding.
  template <class Missing>
  void wait(std::unique_lock<std::mutex>& lock, int rank, const char* collective,
            Missing&& missing) {
    Rank& self = ranks_[std::size_t(rank)];
    self.enter(collective);
    const auto deadline = clock::now() + std::chrono::duration_cast<clock::duration>(
                                             std::chrono::duration<double>(time_out_));
    bool late = false;
    for (std::vector<int> absent; !failed_ && !(absent = missing()).empty();) {
      const auto gone = std::find_if(absent.begin(), absent.end(),
                                     [&](int r) { return ranks_[std::size_t(r)].ended; });
      if (gone != absent.end()) {
        fail("rank " + std::to_string(*gone) + " has ended, rank " + std::to_string(rank) +
                 " waits for it in " + collective,
             nullptr);
      } else if (late) {
        fail(stall(rank, absent), nullptr);
      } else if (time_out_ > 0) {
        late = self.wake.wait_until(lock, deadline) == std::cv_status::timeout;
      } else {
        self.wake.wait(lock);
      }
    }
    self.leave();
    if (failed_) throw Error(text_);
  }

  /// Waits for what needs no other rank's help.
  template <class Done>
  void wait_briefly(std::unique_lock<std::mutex>& lock, int rank, Done&& done) {
    ranks_[std::size_t(rank)].wake.wait(lock, done);
  }

  // The functions below take the mutex themselves.

  void fail_of(int rank, std::exception_ptr error) {
    const std::string text = "rank " + std::to_string(rank) + " failed: " + text_of(error);
    std::lock_guard lock(mutex);
    fail(text, std::move(error));
  }

  void end(int rank) {
    std::lock_guard lock(mutex);
    ranks_[std::size_t(rank)].ended = true;
    for (Rank& r : ranks_) r.wake.notify_all();
    ended_.notify_all();
  }

  /// What the first failure was; empty if there was none.
  std::string failure() {
    std::lock_guard lock(mutex);
    return text_;
  }

  /// Waits until every rank has ended. After a failure the others get the time-out once more; a
  /// thread that then still runs cannot be stopped, so the process ends with status 1.
  void wait_for_end() {
    std::unique_lock lock(mutex);
    const auto all = [&] {
      return std::all_of(ranks_.begin(), ranks_.end(), [](const Rank& r) { return r.ended; });
    };
    ended_.wait(lock, [&] { return failed_ || all(); });
    const auto patience = std::chrono::duration<double>(time_out_);
    if (time_out_ <= 0) {
      ended_.wait(lock, all);
    } else if (!ended_.wait_for(lock, patience, all)) {
      std::fprintf(stderr, "%s\n", text_.c_str());
      std::fflush(nullptr);
      std::_Exit(EXIT_FAILURE);
    }
  }

  /// Throws the first failure, its rank in the text and the original exception nested in it.
  void rethrow() {
    std::lock_guard lock(mutex);
    if (!failed_) return;
    if (!error_) throw Error(text_);
    try {
      std::rethrow_exception(error_);
    } catch (...) {
      std::throw_with_nested(Error(text_));
    }
  }

 private:
  using clock = std::chrono::steady_clock;
  static constexpr double longest = 1e9;  // seconds, which a clock that counts nanoseconds can add

  struct Rank {
    std::condition_variable wake;
    RankState state;
    clock::time_point since = clock::now();
    bool ended = false;

    void enter(const char* collective) {
      state.enter(collective);
      since = clock::now();
    }
    void leave() {
      state.leave();
      since = clock::now();
    }
  };

  RankState state_of(int rank) const {
    RankState state = ranks_[std::size_t(rank)].state;
    state.rank = rank;
    state.seconds =
        std::chrono::duration<double>(clock::now() - ranks_[std::size_t(rank)].since).count();
    return state;
  }

  std::string stall(int rank, const std::vector<int>& absent) const {
    std::vector<RankState> late;
    for (int r : absent)
      if (!state_of(r).is_inside()) late.push_back(state_of(r));
    if (late.empty())  // they wait in other groups, for somebody else
      for (int r = 0; r < int(ranks_.size()); ++r)
        if (!ranks_[std::size_t(r)].ended) late.push_back(state_of(r));
    return stall_text(late, state_of(rank), time_out_);
  }

  std::vector<Rank> ranks_;
  std::condition_variable ended_;
  double time_out_;
  bool failed_ = false;
  std::string text_;
  std::exception_ptr error_;
};

}  // namespace dflash::detail
