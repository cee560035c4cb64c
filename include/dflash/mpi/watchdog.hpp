#pragma once

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "dflash/comm/failure.hpp"
#include "dflash/mpi/expects.hpp"

namespace dflash::detail {

/// A thread of each rank that tells other ranks, on its own communicator, how far this one is, and
/// that ends the job once this rank has waited longer than the time-out, naming who is late.
/// Nothing is sent before that. The answer may take a second or two more.
class MpiWatchdog {
 public:
  /// Collective. A time-out of zero never ends anything.
  explicit MpiWatchdog(double time_out) : time_out_(time_out) {
    mpi_expects(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
    mpi_expects(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    mpi_expects(MPI_Comm_rank(comm_, &state_.rank), "MPI_Comm_rank");
    mpi_expects(MPI_Comm_size(comm_, &ranks_), "MPI_Comm_size");
    if (ranks_ > 1) thread_ = std::thread([this] { watch(); });
  }
  MpiWatchdog(const MpiWatchdog&) = delete;
  MpiWatchdog& operator=(const MpiWatchdog&) = delete;
  ~MpiWatchdog() { stop(); }

  /// Before MPI ends.
  void stop() {
    if (comm_ == MPI_COMM_NULL) return;
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
    MPI_Comm_free(&comm_);
  }

  void set_time_out(double seconds) {
    std::lock_guard lock(mutex_);
    time_out_ = seconds;
  }

  /// Counts a collective that this rank begins.
  void begin() {
    std::lock_guard lock(mutex_);
    ++state_.number;
  }

  /// While it lives, this rank waits in a collective.
  class Inside {
   public:
    Inside(MpiWatchdog& watchdog, const char* collective) : watchdog_(watchdog) {
      std::lock_guard lock(watchdog_.mutex_);
      watchdog_.state_.enter(collective);
      watchdog_.since_ = clock::now();
    }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;
    ~Inside() {
      std::lock_guard lock(watchdog_.mutex_);
      watchdog_.state_.leave();
      watchdog_.since_ = clock::now();
    }

   private:
    MpiWatchdog& watchdog_;
  };

 private:
  using clock = std::chrono::steady_clock;
  enum Tag : int { question, answer };

  struct Answer {
    index_t round;  // of the question: answers to an older one are stale
    RankState state;
  };
  static_assert(std::is_trivially_copyable_v<Answer>);

  RankState state() {
    std::lock_guard lock(mutex_);
    RankState now = state_;
    now.seconds = std::chrono::duration<double>(clock::now() - since_).count();
    return now;
  }

  void watch() {
    std::unique_lock lock(mutex_);
    const auto pause = [&] {
      const double patience = time_out_ > 0 ? time_out_ / 8 : 1;
      return std::chrono::duration<double>(std::min(0.05, patience));
    };
    while (!wake_.wait_for(lock, pause(), [&] { return stopping_; })) {
      const double time_out = time_out_;
      lock.unlock();
      try {
        answer_questions();
        const RankState own = state();
        if (time_out > 0 && own.is_inside() && own.seconds > time_out) investigate(own, time_out);
      } catch (const std::exception& error) {
        fail_mpi_rank(error.what());
      }
      lock.lock();
    }
  }

  /// The rank that asked or answered, or none.
  int next(Tag tag) {
    int found = 0;
    MPI_Status status;
    mpi_expects(MPI_Iprobe(MPI_ANY_SOURCE, tag, comm_, &found, &status), "MPI_Iprobe");
    return found != 0 ? status.MPI_SOURCE : -1;
  }

  void answer_questions() {
    for (int asker; (asker = next(question)) >= 0;) {
      Answer own{0, state()};
      mpi_expects(MPI_Recv(&own.round, sizeof own.round, MPI_BYTE, asker, question, comm_,
                           MPI_STATUS_IGNORE),
                  "MPI_Recv");
      mpi_expects(MPI_Send(&own, sizeof own, MPI_BYTE, asker, answer, comm_), "MPI_Send");
      if (asker < state_.rank) lower_asked_ = clock::now();
    }
  }

  void collect_answers(std::vector<RankState>& states) {
    for (int from; (from = next(answer)) >= 0;) {
      Answer theirs;
      mpi_expects(
          MPI_Recv(&theirs, sizeof theirs, MPI_BYTE, from, answer, comm_, MPI_STATUS_IGNORE),
          "MPI_Recv");
      if (theirs.round == round_) states[std::size_t(from)] = theirs.state;
    }
  }

  void investigate(const RankState& own, double time_out) {
    ++round_;
    std::vector<RankState> states(std::size_t(ranks_), RankState{.answers = false});
    for (int r = 0; r < ranks_; ++r) {
      states[std::size_t(r)].rank = r;
      if (r == own.rank) continue;
      MPI_Request request;  // a rank that is stopped may never take it
      mpi_expects(MPI_Isend(&round_, sizeof round_, MPI_BYTE, r, question, comm_, &request),
                  "MPI_Isend");
      mpi_expects(MPI_Request_free(&request), "MPI_Request_free");
    }
    states[std::size_t(own.rank)] = own;
    const auto all = [&] {
      return std::all_of(states.begin(), states.end(),
                         [](const RankState& s) { return s.answers; });
    };
    const double patience = std::clamp(time_out / 4, 0.25, 2.0);
    listen(patience, [&] {
      collect_answers(states);
      return all();
    });
    // Of ranks that lose patience together one speaks, unless it has got stuck.
    if (clock::now() - lower_asked_ < 2 * std::chrono::duration<double>(patience))
      listen(patience, [] { return false; });
    const RankState now = state();
    if (now.number == own.number && now.is_inside() && now.seconds > time_out)
      end_mpi_job(stall_text(states, now, time_out));
  }

  template <class Done>
  void listen(double seconds, Done done) {
    const auto end = clock::now() + std::chrono::duration<double>(seconds);
    do {
      answer_questions();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    } while (!done() && clock::now() < end);
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int ranks_ = 1;

  std::mutex mutex_;
  double time_out_;
  std::condition_variable wake_;
  RankState state_;
  clock::time_point since_ = clock::now();
  bool stopping_ = false;

  index_t round_ = 0;              // only the thread uses these
  clock::time_point lower_asked_;  // when a rank below this one last asked
  std::thread thread_;
};

}  // namespace dflash::detail
